"""What stages with a reference share: its log-probabilities at hand, measures shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from rich.progress import Progress

from hybrid_ft.finetune.evaluation import answers
from hybrid_ft.finetune.runs.console import duration
from hybrid_ft.finetune.training.reference_cache import ReferenceCache, Values

if TYPE_CHECKING:
    from hybrid_ft.finetune.training.stage import Start


def fill_reference(
    start: Start,
    cache: ReferenceCache,
    splits: Mapping[str, tuple[Dataset, Sequence[bytes]]],
    compute: Callable[..., Any],
    in_step: bool = False,
) -> Values:
    """The reference's log-probabilities of every row, by its digest, from the cache or computed now.

    splits: rows and their digests, by name; ``compute``, ``in_step``: as ``ReferenceCache.fill`` takes them
    """
    began, values = time.perf_counter(), dict[bytes, Any]()
    with Progress(console=start.console, transient=True, disable=not start.console.is_terminal) as live:
        for name, (rows, digests) in splits.items():
            task = live.add_task(f"reference, {name}", total=len(rows))
            values |= cache.fill(
                rows,
                digests,
                start.recipe.train.batch_tokens,
                compute,
                start.say,
                partial(_advance, live, task),
                start.folder.processes,
                start.team,
                in_step,
            )
    start.say(f"reference {cache.folder} ({duration(time.perf_counter() - began)})")
    return values


def _advance(live: Progress, task: Any, done: int, total: int) -> None:
    live.update(task, completed=done)


def show_measures(
    start: Start, before: dict[str, Any], after: dict[str, Any], measures: Callable[[dict[str, float]], str]
) -> None:
    """Held-out measures in words, and answers, before and after."""
    if after["held_out"]:
        start.say(f"held-out  before {measures(before['held_out'])}")
        start.say(f"          after  {measures(after['held_out'])}")
    answers.show(start.console, before | {"loss": None}, after | {"loss": None})


def portions_of(start: Start, count: int, what: str) -> str:
    """What a step holds, as a run says when it begins: ``count`` pairs or rows."""
    recipe, steps = start.recipe, start.plan.per_epoch
    text = f"steps     {count} {what} each, in micro-batches of at most {recipe.train.batch_tokens:,} tokens; "
    if recipe.data.streaming:
        return f"{text}of {recipe.data.shuffle_buffer:,} shuffled {what} at a time"
    return f"{text}{steps:,} steps an epoch"
