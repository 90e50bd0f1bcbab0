"""Commands that measure, and show what was measured: evaluate, report, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.finetune.runs.signals import resumable

_SET = "A value in place of a task's: max_new_tokens=256, or for one of several gsm8k:rows.path=test.jsonl."


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Models or adapters, the first is compared with: folders or hub names."
        ),
    ],
    on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK",
            help="A task's YAML file, the name of one that ships, or lm_eval:NAME; several times for several.",
        ),
    ] = None,
    forgetting: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK", help="Tasks of what may have been forgotten, in a block of their own."),
    ] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=_SET)] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Ask so many rows of each task, a seeded sample.", show_default=False)
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers to each question, in place of a task's.", show_default=False)
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Allow tasks that run code which the model writes.")
    ] = False,
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE", help="A recipe or a run's folder: which rows were met in training.", show_default=False
        ),
    ] = None,
    fail_below: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Least scores, YAML; status 1 where one is missed.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Where answers and results are kept; what is there is not made again.")
    ] = Path("runs/evaluations"),
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one batch at most.")] = 16_384,
) -> int:
    """Score models on tasks, with intervals, paired with the first one. The same command resumes where it was cut short."""
    if not on and not forgetting:
        raise typer.BadParameter("name a task: --on TASK")
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
        Path, typer.Argument(metavar="RUN", help="A run's folder, or that of stages; also on a file share.")
    ],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it as it stands, and end.")] = False,
) -> int:
    """Watch a run as it goes: state, curves, last answers. Ends when the run does; Ctrl-C ends the watching alone."""
    from hybrid_ft.finetune.reports.watch import watch as look
    from hybrid_ft.finetune.runs.console import screen

    return look(run, screen(), every, once)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, of stages, of evaluations; several over one another."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The HTML file; RUN/report.html of one, report.html of several.", show_default=False),
    ] = None,
) -> int:
    """Write one HTML page of runs and evaluations: data, curves, answers, scores. It opens anywhere, without a network."""
    from hybrid_ft.finetune.reports.page import NAME, write_report

    written = write_report(runs, out or (runs[0] / NAME if len(runs) == 1 else Path(NAME)))
    typer.echo(written)
    return 0
