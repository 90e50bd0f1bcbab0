"""Counts with their first places: what became of rows, and why."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

PLACES = 3

_PLACE = re.compile(r'(.*?):(\d+(?: \((?:row \d+|key ".*")\))?)', re.DOTALL)


@dataclass
class Count:
    """How many rows, or turns of them, and where the first are."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, origin: str, count: int = 1) -> None:
        self.count += count
        if len(self.first) < PLACES:
            self.first.append(origin)

    def __str__(self) -> str:
        return f"{self.count:,} ({self.places()})" if self.count else "0"

    def places(self) -> str:
        """``rows.jsonl:3, :7, :12, ...``: a file's name once."""
        shown, before = [], ""
        for origin in self.first:
            name, line = split_origin(origin)
            shown.append(f":{line}" if name == before else origin)
            before = name
        return ", ".join(shown) + (", ..." if self.count > len(self.first) else "")

    def as_dict(self, unit: str = "rows") -> dict[str, Any]:
        return {unit: self.count, "first": list(self.first)}


def split_origin(origin: str) -> tuple[str, str]:
    """A source's name and the place in it: a line, and which of several rows on it."""
    match = _PLACE.fullmatch(origin)
    return (match[1], match[2]) if match else ("", origin)


@dataclass
class Counts:
    """Counts by reason."""

    by_reason: dict[str, Count] = field(default_factory=dict)

    def add(self, reason: str, origin: str, count: int = 1) -> None:
        self.by_reason.setdefault(reason, Count()).add(origin, count)

    @property
    def count(self) -> int:
        return sum(count.count for count in self.by_reason.values())

    def most_first(self) -> list[tuple[str, Count]]:
        return sorted(self.by_reason.items(), key=lambda item: -item[1].count)

    def as_dict(self) -> dict[str, Any]:
        return {reason: count.as_dict() for reason, count in self.most_first()}


def added_up(several: list[Counts]) -> Counts:
    """The sum of counts, the places of the earlier ones first."""
    total = Counts()
    for counts in several:
        for reason, count in counts.by_reason.items():
            into = total.by_reason.setdefault(reason, Count())
            into.count += count.count
            into.first = (into.first + count.first)[:PLACES]
    return total
