"""A run's session: lock, signals, processes, first files, checkpoint to resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import transformers

from hybrid_ft.errors import RESUMABLE
from hybrid_ft.finetune.runs import checkpoints, device, storage
from hybrid_ft.finetune.runs.console import say
from hybrid_ft.finetune.runs.processes import Processes, asked_for, leave, other_is_gone
from hybrid_ft.finetune.runs.signals import Stopped, StopRequest

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder


def in_folder(folder: RunFolder, console: Console, work: Callable[[StopRequest], int]) -> int:
    """Do ``work`` while the folder is held and signals are heard. Returns its status, or 75 where a signal stopped it.

    Of several processes number 0 alone speaks. Raises InputError with status 5 where the disk fails.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    stop = StopRequest(several=asked_for() > 1)
    try:
        with stop.listening():
            processes = Processes.join()
            console.quiet = not processes.main
            with folder.held(processes):
                return work(stop)
    except Stopped:
        name = stop.received.name if stop.received else "a signal to another process"
        say(console, f"stopped by {name}; the same command goes on from here")
    except Exception as error:
        if storage.no_room(error):
            place = getattr(error, "filename", None)
            raise storage.refusal(error, Path(place) if place else folder.path / "a file", None) from error
        if not (stop.several and other_is_gone(error)):
            raise
        console.quiet = False
        say(console, "another process of this run has ended, and so does this one; the same command goes on from here")
    if stop.several:
        leave(RESUMABLE)
    return RESUMABLE


def begin_or_go_on(
    folder: RunFolder,
    recipe: Recipe,
    stage: str,
    identity: dict[str, Any],
    changed: list[str],
    tell: Callable[[str], None],
) -> None:
    """Write the first files of a run, or what its user has accepted since, and say what else is new."""
    if not folder.begun:
        folder.begin(stage, recipe, identity)
        return
    folder.complete(recipe)
    if changed:
        if folder.finished:
            tell(f"extended  the run was finished at step {folder.record['finished']['step']} and goes on from there")
        tell(f"changed   {', '.join(changed)}: accepted, so the run does not end where it would have")
        folder.accept(changed, recipe, identity)
    if folder.record["device"] != device.name():
        tell(
            f"device    {device.name()}, was {folder.record['device']}: the run may not end bit for bit where it would have"
        )
    count, was = folder.processes.count, folder.record.get("processes", folder.processes.count)
    if count != was:
        tell(f"processes {count}, was {was}: a step is the same rows, and rounds differently")
        folder.note(processes=count)


def newest_checkpoint(
    folder: RunFolder, tell: Callable[[str], None], fetch: Callable[[Path | None], Path | None]
) -> Path | None:
    """As process 0 finds it: it sets damaged ones aside, and lets ``fetch`` find a newer one."""
    found = None
    if folder.begun and folder.processes.main:
        found = fetch(checkpoints.newest(folder.checkpoints, tell))
    return folder.processes.of_main(found)


def check_storage(folder: RunFolder, recipe: Recipe, model: torch.nn.Module, bfloat16: bool) -> str:
    """What a save costs here, as it is shown. Raises InputError where the disk fails, or has not the room that the run
    will need."""
    if not folder.processes.main:
        return ""
    each = storage.checkpoint_bytes(model, recipe.train.optimizer)
    keep = recipe.train.keep + recipe.evaluate.keeps_best
    present = sum(file.stat().st_size for file in folder.checkpoints.rglob("*") if file.is_file())
    # one more stays while it is copied to the mirror
    storage.check_room(
        folder.path, each, keep + (recipe.mirror is not None), _result_bytes(recipe, model, bfloat16), present
    )
    return storage.describe(each, storage.probe(folder.path, each), recipe.train.save_every, keep)


def _result_bytes(recipe: Recipe, model: torch.nn.Module, bfloat16: bool) -> int:
    """Of what is exported: all weights, or the adapter and on request all weights."""
    lora = recipe.model.lora
    exported = sum(p.numel() for p in model.parameters() if not lora or p.requires_grad or lora.merge)
    return (2 if bfloat16 else 4) * exported
