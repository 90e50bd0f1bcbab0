"""Counts of supervised rows: tokens, trained share, padding, packs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.packing import empty_share, padding_share
from hybrid_ft.finetune.data.report.account import counted, lengths_of, share


@dataclass
class RowCounts:
    """The supervised rows that are trained on, or those held out.

    ``lengths`` [rows]: tokens of each. ``trained``: tokens of all that are trained; ``duplicates``: rows that are there
    before. ``padding``: the share of padding in padded batches, in the order of the rows. ``packs``, ``empty``: how
    many packs and the share of their budget that no token uses; None without packing.
    """

    lengths: np.ndarray
    trained: int
    duplicates: int
    padding: float
    batch_size: int
    batch_tokens: int
    packs: int | None = None
    empty: float | None = None
    unit: str = "row"
    reversed_too: int = 0

    @classmethod
    def of(
        cls,
        lengths: np.ndarray,
        trained: int,
        texts: np.ndarray,
        packs: list[list[int]] | None,
        *,
        batch_size: int,
        batch_tokens: int,
    ) -> RowCounts:
        """``texts`` [rows]: hashes of whole rows."""
        return cls(
            lengths=lengths,
            trained=trained,
            duplicates=len(texts) - len(np.unique(texts)),
            padding=padding_share(lengths, batch_size),
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            packs=None if packs is None else len(packs),
            empty=None if packs is None else empty_share(lengths, packs, batch_tokens),
        )

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def trained_share(self) -> float:
        return self.trained / max(1, self.tokens)

    def parts(self) -> dict[str, np.ndarray]:
        return {"row": self.lengths}

    def table(self) -> list[tuple[str, str]]:
        batches = f"in batches of {counted(self.batch_size, 'row')}"
        lines = [
            ("rows", f"{self.rows:,}"),
            ("tokens", f"{self.tokens:,}"),
            ("trained", share(self.trained_share)),
            ("duplicates", f"{self.duplicates:,}"),
        ]
        if self.packs is None or self.empty is None:
            return [*lines, (f"padding, {batches}", share(self.padding))]
        return [
            *lines,
            (f"packs of {self.batch_tokens:,} tokens", f"{self.packs:,}"),
            (f"padding before packing, {batches}", share(self.padding)),
            ("padding after packing, room left in packs", share(self.empty)),
        ]

    def line(self, name: str) -> str:
        line = (
            f"{name}: {counted(self.rows, 'row')}, {counted(self.tokens, 'token')}, {share(self.trained_share)} trained"
        )
        batches = f"in batches of {counted(self.batch_size, 'row')}"
        if self.packs is None or self.empty is None:
            return f"{line}; {share(self.padding)} padding {batches}"
        packed = f"{counted(self.packs, 'pack')} of {self.batch_tokens:,} tokens, {share(self.empty)} padding"
        return f"{line}; {packed} ({share(self.padding)} before packing, {batches})"

    def notes(self) -> list[str]:
        return []

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "trained_share": self.trained_share,
            "duplicate_rows": self.duplicates,
            "length": lengths_of(self.lengths),
            "padding_share_padded": self.padding,
            "batch_tokens": self.batch_tokens,
            "packs": self.packs,
            "padding_share_packed": self.empty,
        }
