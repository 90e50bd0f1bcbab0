"""Commands that train, and status, which shows a run's state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.commands.options import AcceptChanges, Extend, Mirror, Overrides, RecipeName, StageOverrides, with_mirror
from hybrid_ft.finetune.recipe.stage_kinds import STAGE_KINDS
from hybrid_ft.finetune.runs.signals import resumable


def _stage(name: str, what: str) -> Callable[..., int]:
    """The command of one stage; ``what`` begins its help."""

    def train(
        recipe: RecipeName,
        overrides: Overrides = None,
        accept_changes: AcceptChanges = False,
        extend: Extend = False,
        mirror: Mirror = None,
    ) -> int:
        return _train(name, recipe, with_mirror(overrides, mirror), accept_changes, extend)

    train.__name__ = name
    train.__doc__ = f"{what} The same command resumes a run that was stopped."
    return train


STAGES = tuple(_stage(name, kind.help) for name, kind in STAGE_KINDS.items())
"""Their commands."""


def _train(stage: str, recipe: str, overrides: list[str], accept_changes: bool, extend: bool) -> int:
    with resumable():
        from hybrid_ft.finetune.recipe.load import load_recipe

        resolved = load_recipe(recipe, overrides, stage=stage)
        from hybrid_ft.finetune.runs.console import screen
        from hybrid_ft.finetune.training.stages import run

        return run(stage, resolved, screen(), accept_changes, extend)


def run_stages(
    stages: Annotated[
        str, typer.Argument(metavar="FILE", help="A YAML file of stages, or the name of one that ships.")
    ],
    overrides: StageOverrides = None,
    mirror: Mirror = None,
) -> int:
    """Run a file of stages, which train or export, each from the last one's model. Finished stages are not repeated."""
    with resumable():
        from hybrid_ft.finetune.launch import run_stages
        from hybrid_ft.finetune.runs.console import screen

        return run_stages(stages, with_mirror(overrides, mirror), screen())


def launch(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A recipe, or a file of stages as for run."),
    ],
    overrides: Overrides = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine; one per GPU if not given.", show_default=False)
    ] = None,
    restarts: Annotated[int, typer.Option(min=0, help="How often to restart after exit status 75.")] = 0,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for the output of all processes but the first.", show_default=False)
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines; start the same command on each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    rendezvous: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Address of machine 0, where the machines meet.", show_default=False),
    ] = None,
    accept_changes: AcceptChanges = False,
    extend: Extend = False,
    mirror: Mirror = None,
) -> int:
    """Train a recipe or a file of stages in one process per GPU. Passes on signals and the exit status of the run."""
    with resumable():
        from hybrid_ft.finetune.launch import Launch, run
        from hybrid_ft.finetune.machines.workers import Nodes
        from hybrid_ft.finetune.runs.console import screen

        how = Launch(processes, Nodes(nodes, node_rank, rendezvous), restarts, logs)
        return run(recipe, with_mirror(overrides, mirror), how, screen(), accept_changes, extend)


def status(output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="A run's folder.")]) -> int:
    """Show a run's state. Exit status 0: finished; 75: the same command resumes; 4: not finite; 2: not a run."""
    from hybrid_ft.finetune.runs.status import status

    found = status(output)
    typer.echo(found.text)
    return found.code
