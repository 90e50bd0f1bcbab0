"""The ``hybrid-ft`` command. Heavy libraries are imported inside the commands, so that help and refusals are quick."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

import hybrid_ft
from hybrid_ft.errors import BAD_INPUT, INTERRUPTED, InputError, masked
from hybrid_ft.finetune.runs.signals import nothing_left_to_stop, resumable

# What a library reads from the environment when it is imported. A value that the user has set stays.
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",  # without a network it prints a line for each of its attempts
    "USE_HUB_KERNELS": "0",  # transformers would fetch and run compiled code by the layer's name
    "TOKENIZERS_PARALLELISM": "true",  # unset, every fork prints a warning and turns it off
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # GNU OpenMP's threads wait for one another for 0.1 s at full speed: beside another busy process steps took four
    # times as long. With fewer turns they took three times as long, and alone as long as before.
    "GOMP_SPINCOUNT": "10000",
}

LIBRARIES = r"(accelerate|datasets|peft|torch|transformers|trl)(\.|$)"

app = typer.Typer(
    help="Fine-tune models that mix Gated DeltaNet layers with attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values that replace the recipe's: train.learning_rate=1e-4", show_default=False
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Resume although the recipe, data, base or code changed."),
]
ModelPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A saved model or adapter folder, a hub name, or the preset tiny.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=10.0, help="0 always takes the likeliest token.")]
TopP = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens that hold this much probability.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sampling.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(hybrid_ft.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def sft(recipe: RecipeName, overrides: Overrides = None, accept_changes: AcceptChanges = False) -> int:
    """Fine-tune a model (SFT) as a recipe says. The same command resumes a run that was stopped."""
    with resumable():
        from hybrid_ft.finetune.recipe.load import load_recipe

        resolved = load_recipe(recipe, overrides or [], stage="sft")
        from hybrid_ft.finetune.runs.console import screen
        from hybrid_ft.finetune.training.sft.stage import run

        return run(resolved, screen(), accept_changes)


@app.command()
def dpo(recipe: RecipeName, overrides: Overrides = None, accept_changes: AcceptChanges = False) -> int:
    """Preference-tune (DPO) a model on pairs of answers. The same command resumes a run that was stopped."""
    with resumable():
        from hybrid_ft.finetune.recipe.load import load_recipe

        resolved = load_recipe(recipe, overrides or [], stage="dpo")
        from hybrid_ft.finetune.runs.console import screen
        from hybrid_ft.finetune.training.dpo.stage import run

        return run(resolved, screen(), accept_changes)


@app.command("run")
def run_stages(
    stages: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML file of stages, or the name of one that ships.")
    ],
    overrides: Overrides = None,
) -> int:
    """Run a file of stages (sft, dpo, export), each from the last one's model. Finished stages are not repeated."""
    with resumable():
        from hybrid_ft.finetune.pipeline import run
        from hybrid_ft.finetune.runs.console import screen

        return run(stages, overrides or [], screen())


@app.command()
def launch(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A recipe, or a file of stages, as for sft, dpo and run.")
    ],
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; one per GPU if not given.", show_default=False)
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="How often to start again after status 75.")] = 0,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for the screens of all processes but the first.", show_default=False)
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Machines; start the same command on each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which of the machines this is.")] = 0,
    rendezvous: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the machines meet: machine 0.", show_default=False)
    ] = None,
    accept_changes: AcceptChanges = False,
) -> int:
    """Train a recipe or a file of stages in one process per GPU. Passes on signals and the exit status of the run."""
    with resumable():
        from hybrid_ft.finetune.launch import Launch, run
        from hybrid_ft.finetune.machines.workers import Nodes
        from hybrid_ft.finetune.runs.console import screen

        how = Launch(processes, Nodes(nodes, node_rank, rendezvous), restarts, logs)
        return run(recipe, overrides or [], how, screen(), accept_changes)


@app.command()
def status(output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A run's folder.")]) -> int:
    """Say what became of a run: status 0 finished, 75 the same command goes on, 4 not finite, 2 not a run."""
    from hybrid_ft.finetune.runs.status import status

    found = status(output)
    typer.echo(found.text)
    return found.code


@app.command()
def data(recipe: RecipeName, overrides: Overrides = None) -> int:
    """Show what a recipe would train on: rows, lengths, padding, and examples with the trained tokens marked."""
    from hybrid_ft.finetune.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from hybrid_ft.finetune.data.prepare import prepare
    from hybrid_ft.finetune.data.report.view import draw
    from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

    model = resolved.model
    tokenizer = load_tokenizer(model.tokenizer or model.path, revision=None if model.tokenizer else model.revision)
    account = prepare(resolved, tokenizer, refuse=False).report
    draw(account, Console())
    if account.refusal:
        raise InputError(account.refusal)
    return 0


@app.command()
def chat(
    path: ModelPath,
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
) -> int:
    """Chat with a model, one line a turn. /reset starts over, /system TEXT sets the system message, /exit ends."""
    from hybrid_ft.finetune.generation.chat import run
    from hybrid_ft.finetune.generation.generate import Sampling

    return run(path, system, max_new_tokens, Sampling(temperature, top_p, seed))


@app.command()
def generate(
    path: ModelPath,
    prompts: Annotated[
        Path, typer.Option(help=".txt: a prompt a line. .jsonl: an object a line with prompt or messages.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the JSON lines go; to the terminal if not given.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
) -> int:
    """Answer every prompt of a file, as JSON lines in the file's order."""
    from hybrid_ft.finetune.generation.prompt_file import read_prompts

    rows = read_prompts(prompts)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist")
    if out is not None and out.is_dir():
        raise InputError(f"{out}: is a folder; name a file for the answers")
    from hybrid_ft.finetune.generation.generate import Sampling, run

    return run(path, prompts, rows, out, max_new_tokens, Sampling(temperature, top_p, seed))


@app.command()
def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter folder that PEFT wrote, or a hub name.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base's own if not given.", show_default=False)
    ] = None,
) -> int:
    """Merge an adapter into the base it names, as one model. The same command resumes where it was cut short."""
    with resumable():
        from hybrid_ft.finetune.conversion.merge import run
        from hybrid_ft.finetune.runs.console import screen

        return run(adapter, out, dtype, screen())


@app.command()
def recipes() -> int:
    """List the recipes that ship."""
    from hybrid_ft.finetune.recipe.shipped import recipe_names

    for name in recipe_names():
        typer.echo(name)
    return 0


def _complain(message: str) -> None:
    """One ``error:`` line for each line of the message, secrets masked; a launcher's ranks but the first say which they are."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[rank {rank}] "
    with suppress(OSError):  # the status still tells, where nothing can be written
        for line in masked(message).splitlines():
            print(f"{prefix}error: {line}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. 2: bad input, 130: interrupted; a bug keeps its traceback."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:  # libraries speaking to one another's authors
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=LIBRARIES)
    try:
        os.getcwd()  # libraries ask for it when they are imported
    except FileNotFoundError:
        _complain("the current folder is no longer there; change to one that is")
        return BAD_INPUT
    try:
        try:
            status = app(arguments, prog_name="hybrid-ft", standalone_mode=False)
        finally:
            if arguments is None:  # the process is this command's, and its status is decided
                nothing_left_to_stop()
    except InputError as error:
        _complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        # typer's own complaints about the command line; its classes live in click or in a private copy, by version
        if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
            raise
        if message := error.format_message():  # none where help has been printed instead
            context = getattr(error, "ctx", None)
            _complain(message.rstrip(".") + (f"; see {context.command_path} --help" if context else ""))
        return error.exit_code
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
