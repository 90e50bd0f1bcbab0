"""A task's answers by one model, scored row by row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.evaluation.measure import LOWER_IS_BETTER, UNBOUNDED
from hybrid_ft.finetune.evaluation.task import Task


@dataclass
class Scored:
    """A task's answers by one model.

    task       None for one of lm_eval's
    lines      one of each item, its scores the mean over its samples
    tokens     that were written or weighed, in seconds
    forgetting  whether it stands for what may be forgotten
    totals     measures that are no mean over rows, as a corpus's BLEU
    falling    measures that fall as a model gets better
    unbounded  measures that do not lie between 0 and 1
    remarks    what else is to be said of it
    """

    name: str
    task: Task | None
    lines: list[dict[str, Any]]
    tokens: int = 0
    seconds: float = 0.0
    forgetting: bool = False
    totals: dict[str, float] = field(default_factory=dict)
    falling: frozenset[str] = frozenset(LOWER_IS_BETTER)
    unbounded: frozenset[str] = UNBOUNDED
    remarks: list[str] = field(default_factory=list)
