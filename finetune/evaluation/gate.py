"""``--fail-below``: least scores that turn an evaluation into a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError, did_you_mean, shown
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

Limits = dict[str, dict[str, float]]

BELOW = 1
"""Exit status of an evaluation that a gate refuses."""
_DROP = "drop"


def read_limits(path: Path, tasks: Sequence[str]) -> Limits:
    """For each task the least value of its measures, or the most of a loss; ``drop``: how far it may fall.

        gsm8k: 0.40                         # of the first measure
        ifeval: {prompt: 0.5, drop: 0.02}   # no further below the first model, beyond doubt

    Raises InputError, a line for each mistake.
    """
    text = read_yaml(path, "file of limits", "gsm8k: 0.4")
    mistakes = [f"{path}:{line}: {mistake}" for line, mistake in text.mistakes]
    limits: Limits = {}
    for task, value in text.value.items():
        at = f"{path}:{text.lines[task,]}: {task}"
        if task not in tasks:
            mistakes.append(f"{at}: no such task is evaluated ({', '.join(tasks)}){did_you_mean(task, tasks)}")
            continue
        given = value if isinstance(value, Mapping) else {"": value}
        limits[task] = {}
        for name, limit in given.items():
            if isinstance(limit, bool) or not isinstance(limit, int | float):
                mistakes.append(f"{at}: got {shown(limit)}; must be a number, or measures with a number each")
            else:
                limits[task][name] = float(limit)
    if mistakes:
        raise InputError("\n".join(mistakes))
    return limits


def failures(limits: Limits, measures: Sequence[Measure]) -> list[str]:
    """What the last model misses, a line each. Raises InputError for a measure that a task has not."""
    found = []
    for task, wanted in limits.items():
        of_task = [measure for measure in measures if measure.task == task]
        by_name = {measure.name: measure for measure in of_task}
        for name, limit in wanted.items():
            measure = of_task[0] if name in ("", _DROP) else by_name.get(name)
            if measure is None:
                known = ", ".join(by_name)
                raise InputError(f"{task}: no measure {name} ({known}){did_you_mean(name, by_name)}")
            found += _dropped(measure, limit) if name == _DROP else _below(measure, limit)
    return found


def _below(measure: Measure, limit: float) -> list[str]:
    value, falls = measure.scores[-1].value, measure.falls
    if value <= limit if falls else value >= limit:
        return []
    rule = "at most" if falls else "at least"
    return [f"{measure.task}: {measure.name} is {measure.number(value)}; must be {rule} {measure.number(limit)}"]


def _dropped(measure: Measure, limit: float) -> list[str]:
    """Where the interval of the difference lies wholly beyond the limit."""
    if not measure.differences:
        return []
    last = measure.differences[-1]
    best_case = -last.low if measure.falls else last.high
    if best_case >= -limit:
        return []
    fell, may = measure.number(abs(last.value)), measure.number(limit)
    return [f"{measure.task}: {measure.name} fell by {fell} from the first model; may fall by {may}"]


def check_measures(limits: Limits, names: Mapping[str, Any], path: Path | None) -> None:
    """Raise InputError, before a model is asked, for a measure that a task's evaluator has not."""
    for task, wanted in limits.items():
        known = [*names[task], _DROP]
        for name in wanted:
            if name and name not in known:
                text = f"no measure {name} ({', '.join(known)}){did_you_mean(name, known)}"
                raise InputError(f"{path}: {task}: {text}")
