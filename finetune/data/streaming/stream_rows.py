"""Rows of a stream in tokens, each on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(slots=True)
class StreamRow:
    """A row to train on. ``ids`` and ``labels`` int32 [tokens]; ``weights`` float32 [tokens], [] where all are 1."""

    origin: str
    ids: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def tokens(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        return int((self.labels != -100).sum())

    @property
    def prompt(self) -> None:
        """None stands beside another for its prompt's sake."""
        return None

    def columns(self) -> dict[str, Any]:
        return {"input_ids": self.ids, "labels": self.labels, "weights": self.weights, "origin": self.origin}


@dataclass(slots=True)
class StreamPair:
    """A preference pair to train on. ``parts``: prompt, chosen and rejected answer, int32 [tokens] each; ``margin`` is
    None where pairs have none."""

    origin: str
    parts: tuple[np.ndarray, np.ndarray, np.ndarray]
    margin: float | None

    @property
    def tokens(self) -> int:
        """The prompt once."""
        return sum(map(len, self.parts))

    @property
    def trained(self) -> int:
        """Of both answers."""
        return len(self.parts[1]) + len(self.parts[2])

    @property
    def prompt(self) -> bytes:
        """Equal for pairs of one prompt."""
        return self.parts[0].tobytes()

    def columns(self) -> dict[str, Any]:
        named = dict(zip(PAIR, self.parts, strict=True)) | {"origin": self.origin}
        return named if self.margin is None else named | {"margin": self.margin}


AnyRow = StreamRow | StreamPair
PAIR = ("prompt_ids", "chosen_ids", "rejected_ids")
_ROW = ("input_ids", "labels", "weights")


def rows_of(table: pa.Table, wanted: Sequence[int]) -> list[AnyRow]:
    """Some rows of a chunk, copied: what is kept of a chunk does not keep all of it in memory."""
    return [_row_of(table, row) for row in wanted]


def _row_of(table: pa.Table, row: int) -> AnyRow:
    origin = table["origin"][row].as_py()
    if _ROW[0] in table.column_names:
        return StreamRow(origin, *_copied(table, row, _ROW))
    margin = table["margin"][row].as_py() if "margin" in table.column_names else None
    prompt, chosen, rejected = _copied(table, row, PAIR)
    return StreamPair(origin, (prompt, chosen, rejected), margin)


def _copied(table: pa.Table, row: int, names: Sequence[str]) -> list[np.ndarray]:
    return [table[name][row].values.to_numpy().copy() for name in names]
