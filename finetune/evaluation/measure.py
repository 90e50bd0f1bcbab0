"""A measure of several models, each difference paired; imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_ft.finetune.evaluation.statistics import Interval

LOWER_IS_BETTER = ("loss", "invented")
"""Measures that fall as a model gets better."""
UNBOUNDED = frozenset({"loss"})
"""Measures that do not lie between 0 and 1."""
METHOD = (
    "scores: Wilson's 95 % interval (losses: normal); differences from the first model: paired by row, Bonett and "
    "Price's 95 % interval (losses: normal)"
)
"""Said below every table."""


@dataclass(frozen=True)
class Measure:
    """One measure of one task.

    items        how many rows have it
    scores       of each model
    differences  of each model but the first, against the first, on the same rows
    bounded      whether it lies between 0 and 1
    falls        whether it falls as a model gets better
    """

    task: str
    name: str
    items: int
    scores: list[Interval]
    differences: list[Interval]
    forgetting: bool = False
    met: float | None = None
    bounded: bool = True
    falls: bool = False

    def verdict(self, model: int) -> str:
        """Of a model but the first: better, worse, or that no difference is seen."""
        found = self.differences[model - 1]
        if not found.settled:
            return "no difference seen"
        return "better" if (found.value < 0) == self.falls else "worse"

    def in_words(self, model: int) -> str:
        """``+13.4 [+9.2, +17.5]``, or ``no difference seen, at most 1.9``; of what has no
        interval the difference alone."""
        found = self.differences[model - 1]
        if math.isinf(found.most):
            return f"{self.number(found.value, '+')}, no interval"
        if not found.settled:
            return f"no difference seen, at most {self.number(found.most)}"
        return f"{self.number(found.value, '+')} [{self.number(found.low, '+')}, {self.number(found.high, '+')}]"

    def score_in_words(self, model: int) -> str:
        """``84.4 [80.3, 87.8]``, in percent; a loss in nats."""
        found = self.scores[model]
        if math.isinf(found.low):
            return self.number(found.value)
        return f"{self.number(found.value)} [{self.number(found.low)}, {self.number(found.high)}]"

    def number(self, value: float, sign: str = "") -> str:
        return f"{100 * value:{sign}.1f}" if self.bounded else f"{value:{sign}.4f}"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: an interval without ends has null there."""
        value = asdict(self) | {"verdicts": [self.verdict(at) for at in range(1, len(self.scores))]}
        for found in (*value["scores"], *value["differences"]):
            found |= {end: None for end in ("low", "high") if math.isinf(found[end])}
        return value

    @classmethod
    def of_dict(cls, value: dict[str, Any]) -> Measure:
        """What ``as_dict`` made. Raises KeyError or TypeError for anything else."""

        def interval(found: dict[str, Any]) -> Interval:
            low, high = found["low"], found["high"]
            return Interval(found["value"], -math.inf if low is None else low, math.inf if high is None else high)

        return cls(
            value["task"],
            value["name"],
            value["items"],
            [interval(found) for found in value["scores"]],
            [interval(found) for found in value["differences"]],
            value["forgetting"],
            value["met"],
            value.get("bounded", value["name"] not in UNBOUNDED),
            value.get("falls", value["name"] in LOWER_IS_BETTER),
        )
