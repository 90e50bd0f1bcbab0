"""``hybrid-ft launch``: a recipe, or a file of stages, in one process per GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.machines.workers import Nodes, check_restarts, launch
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.yaml_file import read_yaml
from hybrid_ft.finetune.several_machines import Leader, follow

if TYPE_CHECKING:
    from rich.console import Console

    from hybrid_ft.finetune.recipe.schema import Recipe

Announce = Callable[[str, str, float, int], None]
"""kind, recipe, seconds to stop, port"""
LEAST_GRACE = 600.0
"""seconds that workers have for a step, a save and their end"""
SLOWER = 4
"""times by which a save may be slower than the disk's trial says"""


@dataclass(frozen=True)
class Launch:
    """How the workers are started. ``processes``: on this machine; None: one per GPU, 1 without GPUs."""

    processes: int | None = None
    nodes: Nodes = field(default_factory=Nodes)
    restarts: int = 0
    logs: Path | None = None


def run(
    file: str,
    overrides: Sequence[str],
    how: Launch,
    console: Console,
    accept_changes: bool = False,
    extend: bool = False,
) -> int:
    """Launch what ``file`` is: stages one after the other, or the recipe of one. Returns the exit status.

    Everything that can be refused without data or weights is refused here, once, before a worker starts.
    """
    _check_not_launched()
    if "stages" in read_yaml(find_recipe(file)).value:
        if accept_changes or extend:
            option = "--accept-changes" if accept_changes else "--extend"
            raise InputError(f"{option}: goes with a recipe; a changed stage of a file of stages is done anew")
        return (
            _stages(file, overrides, how, console)
            if how.nodes.count == 1
            else _on_machines(file, overrides, how, console)
        )
    recipe = load_recipe(file, overrides)
    options = [*(["--accept-changes"] if accept_changes else []), *(["--extend"] if extend else [])]
    command = [recipe.stage, file, *overrides, *options]
    return _launch(command, how, _processes(how), seconds_to_stop(recipe))


def run_stages(file: str, overrides: Sequence[str], console: Console) -> int:
    """``hybrid-ft run``: the stages in this process, or in as many as a launcher has started. Returns the exit status.

    Of a launcher's processes the first starts each stage in processes of its own, whose statuses it can tell apart; the
    others end at once, which launchers take for work that is done.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        from hybrid_ft.finetune import pipeline

        return pipeline.run(file, overrides, console)
    from hybrid_ft.finetune.runs.processes import asked_for, number_told

    count = asked_for()
    if "LOCAL_WORLD_SIZE" in os.environ and number_told("LOCAL_WORLD_SIZE", 1) < count:
        raise InputError(
            "a file of stages on several machines is started by hybrid-ft launch --nodes, not by a launcher",
            ENVIRONMENT,
        )
    if number_told("RANK", 0, count - 1):
        return 0
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    return _stages(file, overrides, Launch(count), console)


def _stages(
    file: str, overrides: Sequence[str], how: Launch, console: Console, announce: Announce | None = None
) -> int:
    """``announce``: tells other machines of each stage before its workers start here."""
    from hybrid_ft.finetune import pipeline

    processes = _processes(how)

    def stage(kind: str, recipe: Recipe) -> int:
        text, grace = recipe.to_yaml(), seconds_to_stop(recipe)
        told = announce and partial(announce, kind, text, grace)
        return _stage(kind, text, how, processes, grace, told)

    return pipeline.run(file, overrides, console, stage)


def _on_machines(file: str, overrides: Sequence[str], how: Launch, console: Console) -> int:
    """Stages on several machines: machine 0 goes through the file, the others do their part of each stage."""
    from hybrid_ft.finetune.recipe.stages import load_stages

    check_restarts(how.restarts, how.nodes)
    load_stages(file, overrides)  # what is wrong with it is said on every machine, before they meet
    if how.nodes.rank:
        processes = _processes(how)
        return follow(
            how.nodes,
            lambda kind, text, grace, nodes: _stage(kind, text, replace(how, nodes=nodes), processes, grace),
        )
    leader, status = Leader(how.nodes), 1
    try:
        status = _stages(file, overrides, how, console, leader.announce)
    except InputError as error:
        status = error.status
        raise
    finally:
        leader.end(status)
    return status


def _stage(
    kind: str, recipe: str, how: Launch, processes: int, grace: float, announce: Callable[[int], None] | None = None
) -> int:
    """One stage of a file: its resolved recipe, from a file of its own."""
    with Scratch() as place:
        file = Path(place) / f"{kind}.yaml"
        file.write_text(recipe, encoding="utf-8")
        return _launch([kind, str(file)], how, processes, grace, announce)


def _launch(
    command: list[str], how: Launch, processes: int, grace: float, announce: Callable[[int], None] | None = None
) -> int:
    program = [sys.executable, "-m", "hybrid_ft.cli", *command]
    return launch(
        program,
        processes,
        nodes=how.nodes,
        grace=grace,
        restarts=how.restarts,
        logs=how.logs,
        say=_say,
        announce=announce,
    )


def seconds_to_stop(recipe: Recipe) -> float:
    """How long workers may take to end: a step, a save at the speed of the disk that it goes to, and
    the copy of it."""
    from hybrid_ft.finetune.machines.empty_model import empty_model
    from hybrid_ft.finetune.mirror.mirror import STOP_SECONDS
    from hybrid_ft.finetune.models import in_bfloat16
    from hybrid_ft.finetune.runs import storage

    assert recipe.output is not None  # a loaded recipe has one
    place = next(path for path in [Path(recipe.output), *Path(recipe.output).absolute().parents] if path.is_dir())
    size = storage.checkpoint_bytes(empty_model(recipe, in_bfloat16(recipe)), recipe.train.optimizer)
    copying = STOP_SECONDS if recipe.mirror else 0.0
    return LEAST_GRACE + SLOWER * size / storage.probe(place, size) + copying


def _processes(how: Launch) -> int:
    from hybrid_ft.finetune.runs import device

    gpus = device.count() if device.is_gpu() else 0
    wanted = how.processes or max(gpus, 1)
    from hybrid_ft.finetune.doctor.run import check_quickly

    check_quickly(how.nodes.count)
    if gpus and wanted > gpus:
        raise InputError(f"--processes: {wanted} must be at most {gpus}, the GPUs of this machine", ENVIRONMENT)
    return wanted


def _check_not_launched() -> None:
    if int(os.environ.get("WORLD_SIZE", "1") or 1) > 1:
        raise InputError(
            "hybrid-ft launch starts the processes itself; start it without torchrun or accelerate launch", ENVIRONMENT
        )


def _say(text: str) -> None:
    print(text, flush=True)
