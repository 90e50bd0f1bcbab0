"""What a run's folder has kept, read for a report."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.files import HARD_ROWS, RESULTS, SUITE_FOLDER
from hybrid_ft.finetune.evaluation.measure import Measure
from hybrid_ft.finetune.recipe.yaml_file import read_yaml
from hybrid_ft.finetune.reports.read import Lines, read_lines, read_object, read_text


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
    hard_rows: Lines = field(default_factory=list)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a measure, those that are finite."""
        pairs = [(line["step"], line[name]) for line in self.metrics if isinstance(line.get(name), int | float)]
        finite = [(float(step), float(value)) for step, value in pairs if math.isfinite(value)]
        return [step for step, _ in finite], [value for _, value in finite]


@dataclass
class KeptEvaluation:
    """One evaluation's table and a few of its answers. ``command``: what repeats it, where it is one of its own."""

    name: str
    models: list[str]
    method: str
    measures: list[Measure]
    examples: Lines
    warnings: list[str] = field(default_factory=list)
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)


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


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a run's folder; nothing where it is not there yet. Raises InputError."""
    recipe = path / "recipe.yaml"
    values = read_yaml(recipe).value if recipe.is_file() else {}
    return values if isinstance(values, dict) else {}


def read_run(path: Path, name: str) -> KeptRun:
    """A run's folder. A line of metrics that is cut short is left out. Raises InputError for a
    record that is damaged."""
    record = read_object(path / "run.json")
    recipe = path / "recipe.yaml"
    text = read_text(recipe) if recipe.is_file() else ""
    both = {
        kind: (read_lines(path / f"{kind}-before.jsonl"), read_lines(path / f"{kind}-after.jsonl"))
        for kind in ("answers", "samples")
    }
    metrics = [line for line in read_lines(path / "metrics.jsonl") if isinstance(line.get("step"), int)]
    values = read_yaml(recipe).value if text else {}
    return KeptRun(
        name, path, record, values, text, metrics, both["answers"], both["samples"], read_lines(path / HARD_ROWS)
    )


def _evaluation(place: Path, name: str) -> KeptEvaluation:
    table = read_object(place / RESULTS)
    try:
        measures = [Measure.of_dict(measure) for measure in table["measures"]]
        more = {key: table[key] for key in ("warnings", "command", "versions") if key in table}
        return KeptEvaluation(name, table["models"], table["method"], measures, table["examples"], **more)
    except (KeyError, TypeError) as error:
        raise InputError(f"{place / RESULTS}: is damaged ({error}); evaluate again") from None
