"""What a run's folder has kept, read for a report."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.compared import RESULTS, SUITE_FOLDER, Measure
from hybrid_ft.finetune.recipe.yaml_file import read_yaml

Lines = list[dict[str, Any]]


@dataclass
class KeptRun:
    """One run, as far as it has come: the contents of its files under their names."""

    name: str
    path: Path
    record: dict[str, Any]
    recipe: dict[str, Any]
    recipe_text: str
    metrics: Lines
    answers: tuple[Lines, Lines] = field(default_factory=lambda: ([], []))
    samples: tuple[Lines, Lines] = field(default_factory=lambda: ([], []))

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a measure, those that are finite."""
        pairs = [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
        finite = [(float(step), float(value)) for step, value in pairs if math.isfinite(value)]
        return [step for step, _ in finite], [value for _, value in finite]


@dataclass
class KeptEvaluation:
    """One evaluation's table and a few of its answers."""

    name: str
    models: list[str]
    method: str
    measures: list[Measure]
    examples: Lines


def read_places(places: list[Path]) -> tuple[list[KeptRun], list[KeptEvaluation]]:
    """The runs and evaluations in folders of runs, of stages and of evaluations. Raises InputError."""
    runs: list[KeptRun] = []
    evaluations: list[KeptEvaluation] = []
    for place in places:
        first = len(runs)
        if (place / "run.json").is_file():
            runs.append(read_run(place, place.name))
        elif (place / "pipeline.json").is_file():
            numbered = [one for one in place.iterdir() if re.fullmatch(r"\d+-\w+", one.name)]
            stages = [one for one in numbered if (one / "run.json").is_file()]
            if not stages:
                raise InputError(f"{place}: none of its stages has begun; nothing is to be reported yet")
            stages.sort(key=lambda one: int(one.name.partition("-")[0]))
            runs += [read_run(one, f"{place.name}/{one.name}") for one in stages]
        elif (place / RESULTS).is_file():
            evaluations.append(_evaluation(place, place.name))
        else:
            kinds = f"a run (run.json), of stages (pipeline.json) or of an evaluation ({RESULTS})"
            raise InputError(f"{place}: must be the folder of {kinds}")
        for run in runs[first:]:
            if (run.path / SUITE_FOLDER / RESULTS).is_file():
                evaluations.append(_evaluation(run.path / SUITE_FOLDER, run.name))
    return runs, evaluations


def read_run(path: Path, name: str) -> KeptRun:
    """A run's folder. A line of metrics that is cut short is left out. Raises InputError for a record that is damaged."""
    record = _object(path / "run.json")
    recipe = path / "recipe.yaml"
    text = _text(recipe) if recipe.is_file() else ""
    both = {
        kind: (_lines(path / f"{kind}-before.jsonl"), _lines(path / f"{kind}-after.jsonl"))
        for kind in ("answers", "samples")
    }
    metrics = [line for line in _lines(path / "metrics.jsonl") if isinstance(line.get("step"), int)]
    values = read_yaml(recipe).value if text else {}
    return KeptRun(name, path, record, values, text, metrics, both["answers"], both["samples"])


def _evaluation(place: Path, name: str) -> KeptEvaluation:
    table = _object(place / RESULTS)
    try:
        measures = [Measure.of_dict(measure) for measure in table["measures"]]
        return KeptEvaluation(name, table["models"], table["method"], measures, table["examples"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{place / RESULTS}: is damaged ({error}); evaluate again") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is damaged; it must hold a JSON object")
    return value


def _lines(path: Path) -> Lines:
    """Objects of a file of lines, nothing where there is none; what is no object, as the cut end of a file, is left out."""
    found = []
    for line in _text(path).splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
