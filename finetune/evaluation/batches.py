"""Batches by tokens, longest first; smaller ones where memory runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.runs import device

Result = TypeVar("Result")


@dataclass
class Budget:
    """What a batch may hold at most: ``tokens`` with those it shares, and ``rows``. Halved where memory runs out."""

    tokens: int = 16_384
    rows: int = 256


def in_batches(
    sizes: Sequence[int],
    budget: Budget,
    work: Callable[[list[int]], Sequence[Result]],
    beside: int = 0,
    padded: bool = False,
    done: Sequence[bool] = (),
    room: int = 1,
) -> Iterator[tuple[int, Result]]:
    """The results of rows of ``sizes`` tokens, each with its row's number, longest first, as batches are done.

    ``work`` takes the numbers of a batch's rows. ``beside``: tokens that every batch has besides. ``padded``: a row
    takes as much room as the longest. ``room``: how many tokens there may be for one of the budget's. ``done`` [rows]:
    whose results are there already; they are not given again. Where those are what an interruption left, the batches
    are those of a run that nobody touched, so that the results are the same to the last bit. Raises InputError, status
    3, where one row alone does not fit into memory.
    """
    waiting = sorted(range(len(sizes)), key=lambda row: -sizes[row])
    there = next((at for at, row in enumerate(waiting) if not done[row]), len(waiting)) if done else 0
    if done and any(done[row] for row in waiting[there:]):  # another choice of rows: those that are missing alone
        waiting, there = [row for row in waiting if not done[row]], 0
    while waiting:
        rows = _fitting(waiting, sizes, budget, beside, padded, room)
        if len(rows) <= there:
            waiting, there = waiting[len(rows) :], there - len(rows)
            continue
        try:
            results = work(rows)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            too_large = True
        else:
            too_large = False
        if too_large:  # outside the handler, whose traceback holds the tensors
            if len(rows) == 1:
                raise InputError(
                    f"one row of {sizes[rows[0]] + beside:,} tokens does not fit into memory; use shorter rows",
                    ENVIRONMENT,
                )
            budget.tokens = max(1, (sum(sizes[row] for row in rows) // 2 + beside) // room)
            budget.rows = max(1, len(rows) // 2)
            if device.is_gpu():
                torch.cuda.empty_cache()
            continue
        waiting = waiting[len(rows) :]
        yield from itertools.islice(zip(rows, results, strict=True), there, None)
        there = 0


def _fitting(
    waiting: list[int], sizes: Sequence[int], budget: Budget, beside: int, padded: bool, room: int
) -> list[int]:
    """The next rows; one at least."""
    count, total = 0, beside
    for row in waiting[: budget.rows]:
        total += sizes[waiting[0]] if padded else sizes[row]
        if count and total > budget.tokens * room:
            break
        count += 1
    return waiting[:count]


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or for the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens with which all rows begin."""
    if not rows:
        return []
    low, high = min(rows), max(rows)
    end = next((at for at, (one, other) in enumerate(zip(low, high)) if one != other), min(len(low), len(high)))
    return low[:end]
