"""The ``hybrid-ft`` command: its commands, exit statuses and error lines.

Heavy libraries are imported inside the commands, so that help and refusals are quick.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

import hybrid_ft
from hybrid_ft.commands.data import data, recipes
from hybrid_ft.commands.evaluation import evaluate, report, watch
from hybrid_ft.commands.machines import doctor, plan
from hybrid_ft.commands.models import chat, export, generate, merge, push, score
from hybrid_ft.commands.renting import rent
from hybrid_ft.commands.training import STAGES, launch, run_stages, status
from hybrid_ft.errors import BAD_INPUT, INTERRUPTED, InputError, masked
from hybrid_ft.finetune.runs.signals import nothing_left_to_stop

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
    help="Fine-tune models that mix recurrent layers with attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


COMMANDS: tuple[Callable[..., object], ...] = (
    *STAGES,
    run_stages,
    launch,
    status,
    plan,
    rent,
    doctor,
    data,
    evaluate,
    report,
    watch,
    chat,
    generate,
    score,
    merge,
    export,
    push,
    recipes,
)  # in the order of the help
for command in COMMANDS:
    app.command(command.__name__.removesuffix("_stages"))(command)


def _complain(message: str) -> None:
    """One ``error:`` line for each line of the message, secrets masked; a launcher's ranks but the first say which they
    are."""
    rank = os.environ.get("RANK", "0")
    prefix = "" if rank == "0" else f"[rank {rank}] "
    with suppress(OSError):  # the status still tells, where nothing can be written
        for line in masked(message).splitlines():
            print(f"{prefix}error: {line}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. 2: bad input, 130: interrupted; a bug keeps its traceback."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(
        logging.ERROR
    )  # PEFT imports it where it is installed, and it reports there
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
