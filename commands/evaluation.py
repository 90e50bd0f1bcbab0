"""Commands that measure, and show what was measured: evaluate, report, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.finetune.runs.signals import resumable

_Price = Annotated[
    float | None,
    typer.Option(min=0.0, help="USD for one GPU for an hour, to show the cost; the recipe's or plan's by default."),
]
_SET = "Replaces a task's value: max_new_tokens=256; of one task among several: gsm8k:rows.path=test.jsonl."


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models or adapters, by folder or hub name; the others are compared with the first.",
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="A task's YAML file, the name of one that ships, or lm_eval:NAME; repeat it for more tasks.",
        ),
    ] = None,
    forgetting: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="A task that training may have made worse; shown in a block of its own."),
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET)] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Ask this many rows of each task, drawn with the task's seed.", show_default=False),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Answers to each question, instead of the task's own number.", show_default=False),
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Allow tasks to run code that the model writes.")
    ] = False,
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="A recipe or a run's folder, to mark the rows that were trained on.",
            show_default=False,
        ),
    ] = None,
    fail_below: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A YAML file of minimum scores; exit status 1 if one is missed.", show_default=False
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for answers and results; finished ones in it are reused.")] = Path(
        "runs/evaluations"
    ),
    batch_tokens: Annotated[int, typer.Option(min=1, help="Most tokens in one batch.")] = 16_384,
) -> int:
    """Score models on tasks, with intervals, and compare each with the first. The same command resumes."""
    if not on and not forgetting:
        from hybrid_ft.finetune.recipe.shipped import evaluation_names

        raise typer.BadParameter(f"name a task, --on TASK: a file, or one of {', '.join(evaluation_names())}")
    with resumable():
        from hybrid_ft.finetune.evaluation.evaluate import Wanted, run
        from hybrid_ft.finetune.runs.console import screen

        wanted = Wanted(
            on or (),
            forgetting or (),
            changes or (),
            limit,
            samples,
            run_code,
            trained_on,
            fail_below,
            out,
            batch_tokens,
        )
        console = screen()
        status = run(models, wanted, console)
        from hybrid_ft.finetune.reports.page import report_at_end
        from hybrid_ft.finetune.runs.console import say

        say(console, report_at_end(out))
        return status


def watch(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run or of a file of stages, also on a shared disk.")
    ],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between updates.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show the present state and exit.")] = False,
    price: _Price = None,
) -> int:
    """Show a run as it goes on: state, curves, last answers. Ends when the run ends; Ctrl-C does not stop the run."""
    from hybrid_ft.finetune.reports.watch import watch as look
    from hybrid_ft.finetune.runs.console import screen

    return look(run, screen(), every, once, price=price)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Folders of runs, stages or evaluations; the curves of several share one plot."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; by default RUN/report.html, or report.html for several.", show_default=False),
    ] = None,
    price: _Price = None,
) -> int:
    """Write one HTML page of runs and evaluations: data, curves, answers, scores. It opens
    anywhere, without a network."""
    from hybrid_ft.finetune.reports.page import NAME, write_report

    written = write_report(runs, out or (runs[0] / NAME if len(runs) == 1 else Path(NAME)), price)
    typer.echo(written)
    return 0
