"""What ``hybrid-ft plan`` prints: a line or a few for each part."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybrid_ft.finetune.planning.estimate import DISK, OUTSIDE, Case, waiting
from hybrid_ft.finetune.planning.work import Work
from hybrid_ft.finetune.runs.storage import size

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

_WIDTH = 10
NO_KEY = "no key makes it fit"


@dataclass(frozen=True)
class Offered:
    """So many GPUs of a kind as the recipe is, and with the ``keys`` that make it fit, as they are written."""

    now: Case
    then: Case
    keys: str

    @property
    def kind(self) -> tuple[str, ...]:
        """The keys, whatever number of processes is to share a micro-batch."""
        return tuple(key for key in self.keys.split() if "sequence_parallel" not in key)

    def __str__(self) -> str:
        return f"with {self.keys} {needed(self.then)}"


def line(heading: str, text: str) -> str:
    return f"{heading:{_WIDTH}}{text}"


def described(recipe: Recipe, one: Case, work: Work) -> Iterator[str]:
    """One case in full: every term of the memory, where the peak is, time and money."""
    memory = one.memory
    place = named(one)
    known = "fits" if memory.proven else "may fit"
    fits = known if one.fits else "may just fit" if one.tight else "does not fit"
    each = " each" if one.count > 1 else ""
    yield line("memory", f"{place}: {fits}, {needed(one)} of {size(one.gpu.memory)}{each}, most in {memory.when}")
    if one.kept:
        yield line("", f"{one.kept} layers keep their activations, the rest are computed again")
    for name, count in memory.terms.items():
        if count:
            yield line("", f"{name:16}{size(count):>10}")
    yield line("", f"{'outside torch':16}{size(OUTSIDE):>10}  about: CUDA, NCCL, gaps between tensors")
    if not memory.proven:
        yield line("", "a layer's own activations are not known for this model: what stands here is the least")
    if not (one.fits or one.tight):
        return
    if one.seconds is None:
        hour = f"{one.count * one.gpu.offer.price:,.2f} $ an hour at " if one.count > 1 else ""
        yield line("price", f"{hour}{one.gpu.offer}; the run's is known with its tokens")
        return
    assert work.tokens is not None
    per_second = sorted(work.tokens * work.epochs / seconds for seconds in one.seconds)
    plural = "s" * (work.epochs != 1)
    rates = " to ".join(f"{_rounded(rate):,.0f}" for rate in per_second)
    yield line(
        "time",
        f"{hours(one.seconds)} for {work.epochs:.3g} epoch{plural}, {rates} tokens/s "
        "(not measured: from the kind's published speeds)",
    )
    if idle := waiting(recipe, work, one.count):
        yield line("", _idle(recipe, work, one.count, idle))
    yield line("cost", f"{dollars(one)} at {one.gpu.offer}" + ("; --price sets it" if one.gpu.offer.date else ""))


def _idle(recipe: Recipe, work: Work, count: int, idle: int) -> str:
    size, packed = recipe.train.sequence_parallel, recipe.stage == "sft" and recipe.data.packing
    who = f"{count} GPUs" if size == 1 else f"{count // size} teams of {size} GPUs"
    if work.dealt != work.micro_batches:
        return f"{idle} of {who} wait at the end of each step, of {work.dealt} rows"
    keys = "train.tokens_per_step and train.batch_tokens set" if packed else "train.rows_per_step sets"
    many = "micro-batch" if work.micro_batches == 1 else "micro-batches"
    return f"{idle} of {who} wait at the end of each step, of {work.micro_batches} {many}; {keys} their number"


def alternatives(found: Sequence[Case], offers: Callable[[Case], Sequence[Offered]]) -> Iterator[str]:
    """The kinds that fit, the cheapest first, and then those that do not, with the keys that would change that."""
    fitting = sorted((one for one in found if one.fits), key=cost)
    for number, one in enumerate(fitting):
        money = "" if one.seconds is None else f", {hours(one.seconds)}, {dollars(one)} at {one.gpu.offer.price:.2f}"
        spread = f" (listed {one.gpu.dearest_and_cheapest()} $ an hour)" if len(one.gpu.offers) > 1 else ""
        heading = "fits" if one.memory.proven else "may fit"
        yield line("" if number else heading, f"{named(one)}: {needed(one)} of {size(one.gpu.memory)}{money}{spread}")
    heading = "not on"
    for one in found:
        if one.fits:
            continue
        for now, keys in [(offer.now, str(offer)) for offer in offers(one)] or [(one, NO_KEY)]:
            close = ", which may just fit" if now.tight else ""
            yield line(heading, f"{named(now)}: needs {needed(now)} of {size(now.gpu.memory)}{close}; {keys}")
            heading = ""


def mended(shown: Case, offers: Sequence[Offered]) -> Iterator[str]:
    """What would make the case that is described in full fit, or other numbers of its GPUs."""
    heading = "change"
    for one in offers:
        yield line(heading, str(one) if one.now.count == shown.count else f"{named(one.now)} {one}")
        heading = ""
    if not offers:
        yield line(heading, NO_KEY)


def rows(work: Work, away: bool, alone: bool) -> str:
    """What is trained on; ``away``: the rows are not on this machine; ``alone``: no other stage has rows of its own."""
    if not away:
        return work.rows
    how = "--tokens N says them" if alone else "plan this stage's recipe alone, with --tokens N"
    return f"{work.rows if work.tokens else f'tokens not known: {how}; {work.rows}'} ({work.source})"


def saves(recipe: Recipe, save_bytes: int, work: Work) -> str:
    train = recipe.train
    count = "" if work.steps is None else f", {math.ceil(work.steps / train.save_every):,} in all"
    return line(
        "saves",
        f"{size(save_bytes)} each, {max(save_bytes / DISK, 0.1):.1f} s at 1 GB/s; every {train.save_every:,} steps{count}, "
        f"{train.keep} kept: {size((train.keep + 1) * save_bytes)} of disk beside the result",
    )


def hours(seconds: tuple[float, float]) -> str:
    return " to ".join(_span(one) for one in seconds)


def dollars(one: Case) -> str:
    found = one.dollars()
    assert found is not None
    if max(found) < 0.01:
        return "under 0.01 $"
    if min(found) < 0.005:
        return f"at most {max(found):.2f} $"
    return " to ".join(f"{value:,.0f}" if value >= 10 else f"{value:.2f}" for value in found) + " $"


def needed(one: Case) -> str:
    return ("" if one.memory.proven else "at least ") + size(one.needed)


def named(one: Case) -> str:
    return f"{one.count} x {one.gpu.name}"


def _rounded(rate: float) -> float:
    """To two digits: it is one end of a range."""
    return float(f"{rate:.2g}") if rate else rate


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36_000 else f"{seconds / 3600:,.0f} h"


def cost(one: Case) -> float:
    found = one.dollars()
    return found[0] + found[1] if found else one.count * one.gpu.offer.price
