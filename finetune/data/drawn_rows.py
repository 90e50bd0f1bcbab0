"""Samples of large sources, drawn before their rows are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.source import rows_in

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.way import Way
    from hybrid_ft.finetune.recipe.data_section import Source

LARGE = 2**23
"""Bytes of a source's files from which a sample is drawn first: fewer are read whole, with every bad row in the
account."""
_WORTH = 2  # times the sample that a source must have, or it is read whole
_MORE = 1.1  # times the rows that would do by the share of usable ones so far
_LEAST_SHARE = 0.02  # of usable rows that is reckoned with


@dataclass(frozen=True)
class Draw:
    """A sample of ``count`` usable rows, by ``seed`` and the ``number`` of the source in its list."""

    count: int
    seed: int
    number: int

    def rounds(self, source: Source, counts: SourceCounts) -> Iterator[np.ndarray | None]:
        """The rows to read, in order, round by round until enough are kept, as ``counts`` says; None for all of them.

        The first round is what a sample of rows that are all usable would be. In every round each row that is not read
        yet is as likely as any other, so that the usable ones among them are a sample of all that are usable."""
        try:
            rows = rows_in(source)
        except InputError:  # whoever reads it says so, after the rows before it
            yield None
            return
        if rows < _WORTH * self.count:
            yield None
            return
        counts.of = rows
        left = np.ones(rows, dtype=bool)
        for turn in range(rows):
            missing = self.count - counts.kept
            if missing <= 0 or counts.read == rows:
                return
            if turn:
                share = max(counts.kept / max(counts.read, 1), _LEAST_SHARE)
                size = min(math.ceil(missing * _MORE / share), int(left.sum()))
                generator = np.random.default_rng((self.seed, self.number, turn))
                wanted = np.sort(generator.choice(np.flatnonzero(left), size, replace=False))
            else:
                wanted = np.sort(np.random.default_rng((self.seed, self.number)).choice(rows, missing, replace=False))
            left[wanted] = False
            yield wanted


def drawn(source: Source, way: Way[Any, Any], sizes: Sequence[tuple[str, int]], seed: int, number: int) -> Draw | None:
    """How a source is sampled before it is read; None where all of it is. ``sizes``: its files with their bytes, none
    for a dataset of the hub."""
    small = bool(sizes) and sum(size for _, size in sizes) < LARGE
    if source.count is None or small or source.only or source.without:
        return None
    try:
        return Draw(source.count, seed, number) if way.one_each(source) else None
    except InputError:
        return None
