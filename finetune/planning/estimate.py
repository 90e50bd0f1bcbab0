"""Whether a recipe fits a kind of GPU; time and money from and to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.machines.checkpointed_layers import OUTSIDE, fits, left_out
from hybrid_ft.finetune.machines.gpus import Gpu
from hybrid_ft.finetune.machines.memory import MARGIN, Memory, peak
from hybrid_ft.finetune.machines.shape import Shape
from hybrid_ft.finetune.planning.work import Work

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

COUNTS = (1, 2, 4, 8)
OF_A_MACHINE = 8
"""GPUs, at most, that share one machine and its links"""
NETWORK = 25e9 / 8
"""bytes a second between machines, of a link that most places have; some have sixteen times as much"""
LAUNCHES = (0.0005, 0.0015)
"""seconds, from and to, that a layer's forward, second forward and backward take at least: some 100 to 150 kernels, 5
to 10 microseconds each to start"""
HOST = 25e9
"""bytes a second to the host's pinned memory and back, at least; at best twice as many"""
NF4 = ("model", "quantize", "nf4")
DISK = 1e9
"""bytes a second that a rented machine's own disk is taken to write"""


@dataclass(frozen=True)
class Case:
    """``count`` GPUs of a kind. ``seconds``: from and to, None where the tokens are not known; ``kept``: layers that
    are left out of checkpointing."""

    gpu: Gpu
    count: int
    memory: Memory
    seconds: tuple[float, float] | None
    kept: int = 0

    @property
    def needed(self) -> float:
        return self.memory.total + OUTSIDE

    @property
    def fits(self) -> bool:
        return fits(self.memory.total, self.gpu.memory)

    @property
    def tight(self) -> bool:
        """Not with certainty: the tensors alone would go in. What is only the least would not."""
        return self.memory.proven and not self.fits and self.memory.total * (1 - MARGIN) <= self.gpu.memory

    def dollars(self) -> tuple[float, float] | None:
        if self.seconds is None:
            return None
        return tuple(one / 3600 * self.count * self.gpu.offer.price for one in self.seconds)  # type: ignore[return-value]


def case(recipe: Recipe, shape: Shape, work: Work, gpu: Gpu, count: int, save_bytes: int) -> Case:
    checkpointing = recipe.model.gradient_checkpointing
    size = recipe.train.sequence_parallel
    batch = replace(work.batch, several=work.micro_batches > count // size).over(size)
    # one machine's pieces hold a whole model, as those of all do otherwise
    among = _of_a_machine(count) if recipe.train.sharded == "machine" else count
    sharded = bool(recipe.train.sharded) and among > 1
    kept = left_out(recipe, shape, batch, among if sharded else count, gpu.memory)
    memory = peak(shape, batch, among if sharded else count, sharded, checkpointing, kept)
    again = 0.0 if checkpointing is False else 1 - len(kept) / max(len(shape.layers), 1)
    seconds = None if not work.tokens else _seconds(recipe, shape, work, gpu, count, again, save_bytes)
    return Case(gpu, count, memory, seconds, len(kept))


def waiting(recipe: Recipe, work: Work, count: int) -> int:
    """How many of so many GPUs, or of the teams that share a micro-batch, wait at the end of each step."""
    return -work.dealt % (count // recipe.train.sequence_parallel)


def _of_a_machine(count: int) -> int:
    """Of so many GPUs those of one machine, of which each has as many."""
    machines = math.ceil(count / OF_A_MACHINE)
    while count % machines:
        machines += 1
    return count // machines


def _seconds(
    recipe: Recipe, shape: Shape, work: Work, gpu: Gpu, count: int, again: float, save_bytes: int
) -> tuple[float, float]:
    """Of the whole run; ``again``: the share of the layers that are computed twice. A kind's share of its peak is that
    of full training with every layer recomputed: what is done, recomputation counted, over the time is the same for
    adapters."""
    size = recipe.train.sequence_parallel
    teams = count // size
    idle = 1 + waiting(recipe, work, count) / work.dealt
    done = (work.operations + work.again * again) * idle / count
    over = 4 / 3  # what is done of full training with recomputation, over what counts
    slow, fast = (done / (gpu.flops * share * over) for share in gpu.mfu)
    micro = work.tokens / max(sum(work.typical), 1) / teams * idle if work.tokens else 0.0
    least, most = (len(shape.layers) * micro * seconds for seconds in LAUNCHES)
    traffic = _traffic(recipe, shape, work, gpu, count)
    hosted = 0.0
    if recipe.model.gradient_checkpointing == "offload":
        hosted = 2 * sum(layer.input for layer in shape.layers) * (work.tokens or 0) / count / HOST
    saves = math.floor((work.steps or 0) / recipe.train.save_every) * save_bytes / DISK
    # at best the GPUs send and start kernels while they compute, and a save waits for nobody
    quick, long = max(fast + hosted / 2, traffic, least), max(slow, most) + traffic + hosted
    return quick * work.epochs, long * work.epochs + saves


def _traffic(recipe: Recipe, shape: Shape, work: Work, gpu: Gpu, count: int) -> float:
    """Seconds of an epoch in which each GPU sends: for each micro-batch in pieces layers twice, the rest once,
    and gradients once; gradients twice a step where each has a copy, or each machine; of shared micro-batches
    what goes to other heads, three times (forward, again, backward). What the GPUs of several machines exchange
    goes over their network."""
    if count == 1 or not work.tokens:
        return 0.0
    size, sharded, here = recipe.train.sequence_parallel, recipe.train.sharded, _of_a_machine(count)
    micro = work.tokens / max(work.batch.tokens, 1) * size / count
    steps = micro * (count // size) / work.micro_batches
    gradients = shape.gradient * shape.trained
    weights = shape.outside.bytes + 2 * sum(map(shape.gathered, shape.layers))
    # what goes round all of them crosses each machine's network once, and so do the shares of its GPUs together
    outside = gpu.link if here == count else min(NETWORK, gpu.link)
    if sharded == "machine":
        pieces = (weights + gradients) * micro * (here - 1) / here / gpu.link
        machines = count // here
        sent = pieces + 2 * gradients * steps * (machines - 1) / machines / outside
    else:
        sent = ((weights + gradients) * micro if sharded else 2 * gradients * steps) * (count - 1) / count / outside
    heads = 3 * work.exchanged * work.tokens / count * (size - 1) / size
    return sent + heads / (gpu.link if size <= here else outside)


def cases(
    recipe: Recipe, shape: Shape, work: Work, kinds: list[Gpu], counts: tuple[int, ...], save_bytes: int
) -> Iterator[Case]:
    """Of each kind the smallest number that fits, or else the largest."""
    for gpu in kinds:
        found = None
        for count in counts:
            found = case(recipe, shape, work, gpu, count, save_bytes)
            if found.fits:
                break
        assert found is not None
        yield found


def _takes_bfloat16(recipe: Recipe) -> bool:
    """All weights, and none of them in bfloat16 yet."""
    whole = recipe.model.lora is None and recipe.model.dtype != "float32"
    return whole and recipe.train.optimizer != "adamw_bf16"


def changes(recipe: Recipe, count: int, heads: int = 1) -> Iterator[tuple[tuple[str, str, Any], ...]]:
    """Keys that lower the memory, the least costly first: (section, key, value) of each, in combinations. ``heads``: by
    how many processes a micro-batch can be shared."""
    single: list[tuple[tuple[str, str, Any], ...]] = []
    if recipe.model.gradient_checkpointing is False:
        single.append((("model", "gradient_checkpointing", True),))
    if isinstance(recipe.model.checkpointed_layers, int):
        single.append((("model", "checkpointed_layers", None),))
    if count > 1 and not recipe.train.sharded:
        single.append((("train", "sharded", True),))
    packed = recipe.stage in ("dpo", "kto") or (recipe.stage == "sft" and recipe.data.packing)
    if recipe.train.sequence_parallel == 1 < count <= heads and packed and recipe.model.quantize != "int8":
        single.append((("train", "sequence_parallel", count),))
    base = tuple(one for some in single for one in some)
    yield from single
    if len(single) > 1:
        yield base
    offload = ("model", "gradient_checkpointing", "offload")
    offloads = recipe.model.gradient_checkpointing in (None, True)
    if _takes_bfloat16(recipe):
        small = (("train", "optimizer", "adamw_bf16"),)
        if base and count == 1:
            yield small
        if offloads and count > 1:  # which rounds no weight
            yield (*base, offload)
        base += small
        yield base
    if offloads:
        yield (*base, offload)
    without = tuple(one for one in base if one[1] != "optimizer")
    shorter = _smaller_batches(recipe)
    if recipe.model.lora is None:
        for some in shorter:
            yield (*base, *some)
        if recipe.model.from_scratch:  # there is nothing to adapt
            return
        few: tuple[tuple[str, str, Any], ...] = (("model", "lora", {}),)  # whose numbers are few
        without += few if recipe.train.optimizer == "adamw" else (*few, ("train", "optimizer", "adamw"))
        yield without
        if offloads:
            yield (*without, offload)
        exact = False
    else:
        lora = recipe.model.lora
        exact = lora.dora or lora.init.startswith(("pissa", "olora"))  # of weights that are not rounded
    rounded = [] if recipe.model.quantize or exact else [(*without, NF4)]
    whole = [some for some in shorter if len(some) == 1]  # without a shorter row
    for some in whole:
        yield (*without, *some)
    for keys in rounded:  # rounds the base, and takes no row's end away
        yield keys
        if offloads:
            yield (*keys, offload)
    for some in shorter[len(whole) :]:
        yield (*without, *some)
    for keys in rounded:
        for some in shorter:
            yield (*keys, *some)


def _smaller_batches(recipe: Recipe) -> list[tuple[tuple[str, str, Any], ...]]:
    """The largest first; from one that is shorter than a row may be, rows are cut too."""
    found = []
    for half in (2, 4, 8, 16):
        tokens = recipe.train.batch_tokens // half
        if tokens >= 1024 and recipe.data.packing:
            cut = (("data", "max_length", tokens),) if recipe.data.max_length > tokens else ()
            found.append((("train", "batch_tokens", tokens), *cut))
    return found
