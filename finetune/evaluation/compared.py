"""Scores of several models on the same items, each difference paired."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hybrid_ft.finetune.evaluation import statistics
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.statistics import Interval
from hybrid_ft.finetune.evaluation.task import LOWER_IS_BETTER

RESULTS = "results.json"
"""The table's file, beside the answers."""
SUITE_FOLDER = "suite"
"""In a run's folder: answers by step and task, and the table."""


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
        """``+13.4 [+9.2, +17.5]``, or ``no difference seen, at most 1.9``; of what has no interval the difference alone."""
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
            value.get("bounded", value["name"] not in Scored.unbounded),
            value.get("falls", value["name"] in LOWER_IS_BETTER),
        )


def compared(models: Sequence[Scored], forgetting: bool = False, met: float | None = None) -> list[Measure]:
    """The measures of one task, whose items are the same in every model's lines."""
    first = models[0].lines
    found = []
    alone = list(dict.fromkeys(name for model in models for name in model.totals))
    for name in dict.fromkeys(name for line in first for name in line["scores"]):
        if name in alone:
            continue
        rows = [at for at, line in enumerate(first) if name in line["scores"]]
        clusters = None if first[0].get("cluster") is None else [first[at]["cluster"] for at in rows]
        values = [[model.lines[at]["scores"][name] for at in rows] for model in models]
        weights = [float(first[at]["tokens"]) for at in rows] if name == "loss" else None
        bounded = not any(name in model.unbounded for model in models)
        scores = [
            statistics.share(scores, clusters) if bounded else statistics.mean(scores, weights, clusters)
            for scores in values
        ]
        differences = [
            statistics.difference(values[0], other, bounded=bounded, weights=weights, clusters=clusters)
            for other in values[1:]
        ]
        found.append(
            Measure(
                models[0].name,
                name,
                len(rows),
                scores,
                differences,
                forgetting,
                met,
                bounded,
                name in models[0].falling,
            )
        )
    for name in alone:
        totals = [model.totals[name] if name in model.totals else _mean(model, name) for model in models]
        scores = [Interval(total, -math.inf, math.inf) for total in totals]
        differences = [Interval(total - totals[0], -math.inf, math.inf) for total in totals[1:]]
        falls = name in models[0].falling
        found.append(
            Measure(models[0].name, name, len(first), scores, differences, forgetting, met, bounded=False, falls=falls)
        )
    return found


def _mean(model: Scored, name: str) -> float:
    return math.fsum(line["scores"][name] for line in model.lines) / len(model.lines)


def as_json(models: Sequence[str], measures: Sequence[Measure], **more: Any) -> str:
    """The whole table as JSON."""
    table = {"models": list(models), "method": METHOD, "measures": [measure.as_dict() for measure in measures]}
    return json.dumps(table | more, indent=1, ensure_ascii=False) + "\n"


METHOD = (
    "scores: Wilson's 95 % interval (losses: normal); differences from the first model: paired by row, Bonett and "
    "Price's 95 % interval (losses: normal)"
)
"""Said below every table."""
