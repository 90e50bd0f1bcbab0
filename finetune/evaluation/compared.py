"""Scores of several models on the same items, each difference paired."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from hybrid_ft.finetune.evaluation import statistics
from hybrid_ft.finetune.evaluation.measure import METHOD, Measure
from hybrid_ft.finetune.evaluation.scored import Scored
from hybrid_ft.finetune.evaluation.statistics import Interval


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
