"""``hybrid-ft doctor``: is this machine sound, and can it run this recipe?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.doctor import arithmetic, collectives, hub, nvidia, system
from hybrid_ft.finetune.doctor.finding import Finding, absent
from hybrid_ft.finetune.runs import device

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe


def run(recipe: Recipe | None, say: Callable[[str], None]) -> int:
    """Say each check's line as soon as it is known. Returns 3 where one is red, else 0."""
    red = 0
    for finding in findings(recipe):
        say(str(finding))
        red += finding.red
    return ENVIRONMENT if red else 0


def check_quickly(machines: int = 1) -> None:
    """What takes a second, before a launch on GPUs. Raises InputError, status 3, with a line for each red one."""
    gpus = device.count() if device.is_gpu() else 0
    of_machine = [system.shared_memory(gpus), system.limits(), system.locked_memory(gpus, machines)]
    found = [*of_gpus(), *of_machine] if gpus else [*unseen()]
    red = [str(one) for one in found if one.red]
    if red:
        raise InputError("\n".join(red), ENVIRONMENT)


def findings(recipe: Recipe | None) -> Iterator[Finding]:
    gpus = device.count() if device.is_gpu() else 0
    yield arithmetic.versions()
    yield from of_gpus()
    yield from unseen()
    yield arithmetic.kernels()
    yield from arithmetic.rates()
    yield collectives.check(gpus)
    yield system.shared_memory(gpus)
    yield system.limits()
    yield system.locked_memory(gpus)
    weights, kept = _needed(recipe, gpus)
    yield system.memory(weights)
    yield system.disk(Path(recipe.output) if recipe and recipe.output else Path.cwd(), kept)
    yield hub.token()
    if recipe is not None:
        yield hub.model(recipe)
        yield hub.tokenizer(recipe)
        yield hub.data(recipe)


def of_gpus() -> Iterator[Finding]:
    try:
        text = nvidia.query()
    except nvidia.Failed as error:
        yield nvidia.finding_of_failure(str(error))
    else:
        if not text or not text.strip():
            yield absent("GPUs")
            return
        yield from nvidia.findings_of_gpus(text)
    yield nvidia.finding_of_log(nvidia.kernel_log())


def unseen() -> Iterator[Finding]:
    """Red where the machine has GPUs, and torch would train on the CPU without a word."""
    try:
        text = nvidia.query()
    except nvidia.Failed:  # a line of its own says so
        return
    if text and text.strip() and (found := arithmetic.unseen(len(text.strip().splitlines()))):
        yield found


def _needed(recipe: Recipe | None, gpus: int) -> tuple[int | None, int | None]:
    """Bytes of host memory to load the weights in, and of disk for a run's checkpoints; None where it is not known.
    Where each GPU has a copy its process loads one; pieces are sent."""
    if recipe is None:
        return None, None
    from hybrid_ft.finetune.machines.empty_model import empty_model
    from hybrid_ft.finetune.models import in_bfloat16
    from hybrid_ft.finetune.runs.storage import checkpoint_bytes

    try:
        model = empty_model(recipe, in_bfloat16(recipe))
    except InputError:  # its own line says so
        return None, None
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    loaded = weights if recipe.train.sharded else weights * max(gpus, 1)
    return loaded, (recipe.train.keep + 1) * checkpoint_bytes(model, recipe.train.optimizer)
