"""What a stream held, counted as it was trained on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hybrid_ft.finetune.data.report.account import Account, counted, share
from hybrid_ft.finetune.data.streaming.source_stream import State, counts_of


@dataclass
class StreamedRows:
    """The rows that were trained on so far. ``held``: those held out; ``passes``: that have ended; ``room``: tokens
    that the packs, or the padded batches, have room for."""

    rows: int
    tokens: int
    trained: int
    packs: int
    room: int
    held: int
    passes: int
    unit: str = "row"
    duplicates: int = 0
    reversed_too: int = 0

    def parts(self) -> dict[str, np.ndarray]:
        """None: a stream's lengths are not kept."""
        return {}

    def table(self) -> list[tuple[str, str]]:
        return [("rows", f"{self.rows:,}"), ("tokens", f"{self.tokens:,}")]

    def line(self, name: str) -> str:
        text = f"{name}: {counted(self.rows, 'row')}, {counted(self.tokens, 'token')}, "
        text += (
            f"{share(self.trained / max(1, self.tokens))} trained; {share(1 - self.tokens / max(1, self.room))} padding"
        )
        return text + self._rest()

    def _rest(self) -> str:
        """How a line ends."""
        held = f"; {counted(self.held, self.unit)} held out" if self.held else ""
        return held + (f"; in pass {self.passes + 1}" if self.passes else "")

    def notes(self) -> list[str]:
        return []

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "trained_tokens": self.trained,
            "micro_batches": self.packs,
            "rows_held_out": self.held,
            "whole_passes": self.passes,
        }


class StreamedPairs(StreamedRows):
    """``trained``: tokens of the answers; the rest is prompts, each counted once for its pair."""

    def line(self, name: str) -> str:
        return f"{name}: {counted(self.rows, 'pair')}, {counted(self.tokens, 'token')}" + self._rest()

    def table(self) -> list[tuple[str, str]]:
        return [("pairs", f"{self.rows:,}"), ("tokens, prompt once", f"{self.tokens:,}")]

    def as_dict(self) -> dict[str, Any]:
        return {
            "pairs": self.rows,
            "tokens": self.tokens,
            "pairs_held_out": self.held,
            "whole_passes": self.passes,
        }


def account_of(counted: State, sample: Account) -> Account:
    """The account of a stream up to a window's end, which ``counted`` is; the rest as in the ``sample``'s."""
    names = ("rows", "tokens", "trained", "packs", "room", "held", "passes")
    of_pairs = sample.train.unit == "pair"
    kind, unit = (StreamedPairs, "pair") if of_pairs else (StreamedRows, "row")
    rows = kind(**{name: counted[name] for name in names}, unit=unit)
    sources = [counts_of(counts) for counts in counted["counts"]]
    return replace(sample, sources=sources, train=rows, examples=[], refusal=None, sample=None)
