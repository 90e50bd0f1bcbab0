"""Which rows share a micro-batch: best-fit decreasing into a token budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class _Rooms:
    """The open packs by the room left in them, the smallest sufficient room found in constant time.

    A bit per room, in words of 1,024 bits, and a bit per word: integers of Python find their lowest set bit quickly.
    """

    _BITS = 10

    def __init__(self, budget: int) -> None:
        self._packs: list[list[int]] = [[] for _ in range(budget + 1)]
        self._words = [0] * ((budget >> self._BITS) + 1)
        self._filled = 0

    def add(self, room: int, pack: int) -> None:
        self._packs[room].append(pack)
        word = room >> self._BITS
        self._words[word] |= 1 << (room & 1023)
        self._filled |= 1 << word

    def take(self, needed: int) -> tuple[int, int] | None:
        """A pack with the least room that is enough, and that room; the pack is open no longer. None: no pack has it."""
        word = needed >> self._BITS
        rooms = self._words[word] >> (needed & 1023)
        if rooms:
            room = needed + (rooms & -rooms).bit_length() - 1
        else:
            later = self._filled >> (word + 1)
            if not later:
                return None
            word += (later & -later).bit_length()
            rooms = self._words[word]
            room = (word << self._BITS) + (rooms & -rooms).bit_length() - 1
        packs = self._packs[room]
        pack = packs.pop()
        if not packs:
            self._words[word] &= ~(1 << (room & 1023))
            if not self._words[word]:
                self._filled &= ~(1 << word)
        return pack, room


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
    rooms = _Rooms(budget)
    packs: list[list[int]] = []
    for row, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fits = rooms.take(size)
        if fits is None:
            packs.append([row])
            rooms.add(budget - size, len(packs) - 1)
        else:
            number, room = fits
            packs[number].append(row)
            rooms.add(room - size, number)
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
