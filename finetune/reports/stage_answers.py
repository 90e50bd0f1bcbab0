"""The answers of stages' models to the same prompts, as an evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_ft.finetune.evaluation import statistics
from hybrid_ft.finetune.evaluation.kept_answers import scores
from hybrid_ft.finetune.evaluation.measure import METHOD, Measure
from hybrid_ft.finetune.reports.kept_run import KeptEvaluation
from hybrid_ft.finetune.reports.read import Lines, read_lines

_FALLING = "invented values"
_EXAMPLES = 12


def stage_answers(place: Path) -> KeptEvaluation | None:
    """Of a folder of stages the answers of the base and of each stage's model; None where they are not there."""
    files = [place / "answers-base.jsonl", *sorted(place.glob("answers-[0-9]*.jsonl"), key=_number)]
    models = [file.stem.removeprefix("answers-") for file in files]
    lines = [read_lines(file) for file in files]
    if not all(lines) or len({len(of_model) for of_model in lines}) > 1:
        return None
    measures = []
    for source in dict.fromkeys(line["source"] for line in lines[0]):
        parts = [[line for line in of_model if line["source"] == source] for of_model in lines]
        for measure, (values, rows) in scores(parts).items():
            clusters = None if len(set(rows)) == len(rows) else rows
            measures.append(
                Measure(
                    Path(source).name,
                    measure,
                    len(rows),
                    [statistics.share(of_model, clusters) for of_model in values],
                    [statistics.difference(values[0], of_model, clusters=clusters) for of_model in values[1:]],
                    falls=measure == _FALLING,
                )
            )
    return KeptEvaluation(place.name, models, METHOD, measures, _examples(lines))


def _number(file: Path) -> int:
    return int(file.stem.split("-")[1])


def _examples(lines: list[Lines]) -> list[dict[str, Any]]:
    """A few rows, those first that the last model answers otherwise than the one before it, then than the first."""

    def unchanged(row: tuple[dict[str, Any], ...]) -> tuple[bool, bool]:
        last = row[-1]["exact"]
        return row[-2:][0]["exact"] == last, row[0]["exact"] == last

    return [
        {
            "task": Path(row[0]["source"]).name,
            "origin": row[0]["origin"],
            "question": str(row[0].get("question", "")),
            "reference": row[0]["reference"],
            "answers": [line["answer"] for line in row],
        }
        for row in sorted(zip(*lines, strict=True), key=unchanged)[:_EXAMPLES]
    ]
