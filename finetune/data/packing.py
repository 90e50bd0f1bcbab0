"""Which rows share a micro-batch: best-fit decreasing into a token budget."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, budget: int, seed: int = 0) -> list[list[int]]:
    """Put every row into exactly one pack of at most ``budget`` tokens.

    ``lengths`` [rows] are token counts from 1 to ``budget``. Rows are taken from the longest to the shortest, each into
    the pack that it fills best. The seed decides which of several equally long rows goes where, and the order of the
    packs and of the rows inside each: without it the longest rows would all come first. A million rows take seconds.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return []
    if sizes.min() < 1 or sizes.max() > budget:
        raise ValueError(f"row lengths from {sizes.min()} to {sizes.max()} do not fit a budget of {budget} tokens")
    random = np.random.default_rng(seed)
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    packs: list[list[int]] = []
    rooms: list[int] = []  # every room that an open pack has, ascending
    open_packs: dict[int, list[int]] = {}  # the packs that have it, the newest last
    for row, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            number, room = len(packs), budget
            packs.append([])
        else:
            room = rooms[at]
            number = open_packs[room].pop()
            if not open_packs[room]:
                del open_packs[room], rooms[at]
        packs[number].append(row)
        left = room - size
        if left not in open_packs:
            open_packs[left] = []
            bisect.insort(rooms, left)
        open_packs[left].append(number)
    for rows in packs:
        random.shuffle(rows)
    return [packs[number] for number in random.permutation(len(packs)).tolist()]


def empty_share(lengths: Sequence[int] | np.ndarray, packs: list[list[int]], budget: int) -> float:
    """The share of the packs' budget that no token uses."""
    return 1.0 - float(np.sum(lengths)) / (len(packs) * budget) if packs else 0.0


def padding_share(lengths: Sequence[int] | np.ndarray, batch_size: int) -> float:
    """The share of padding in batches of ``batch_size`` rows, in the order given, each as wide as its longest row."""
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        return 0.0
    starts = np.arange(0, len(sizes), batch_size)
    rows = np.diff(np.append(starts, len(sizes)))
    return 1.0 - float(sizes.sum()) / float((np.maximum.reduceat(sizes, starts) * rows).sum())
