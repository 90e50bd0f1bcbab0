"""Answers kept in files, and what they score; imports nothing heavy."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from hybrid_ft.finetune.runs.atomic import write_text


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def measures(answers: list[list[dict[str, Any]]]) -> dict[str, list[str]]:
    """For each measure that these answers have, its text for each model; ``scores`` says which there are."""
    return {
        measure: [_share(round(sum(of_model)), len(of_model)) for of_model in models]
        for measure, (models, _) in scores(answers).items()
    }


def scores(answers: list[list[dict[str, Any]]]) -> dict[str, tuple[list[list[float]], list[int]]]:
    """For each measure what is counted, 0 or 1, of each model, and the row that each of these is of.

    exact answers    the reference, letter for letter, but for space at the ends
    invented values  where references are JSON objects: fields that are null there and have a value in the answer
    """
    if not answers[0]:
        return {}
    rows = list(range(len(answers[0])))
    table = {"exact answers": ([[float(row["exact"]) for row in of_model] for of_model in answers], rows)}
    counts = [[invented(row["answer"], row["reference"]) for row in of_model] for of_model in answers]
    fields = [row for row, (_, missing) in enumerate(counts[0]) for _ in range(missing)]
    if fields:
        values = [[float(at < count) for count, of in of_model for at in range(of)] for of_model in counts]
        table["invented values"] = (values, fields)
    return table


def invented(answer: str, reference: str) -> tuple[int, int]:
    """How many of the fields that are null in ``reference``, a JSON object, have a value in ``answer``; and
    how many there are.

    In an answer that is not JSON the first value written for a field counts.
    """
    missing = [field for field, value in (_json_object(reference) or {}).items() if value is None]
    given = _json_object(answer)
    if given is None:
        written = [re.search(re.escape(json.dumps(field)) + r"\s*:\s*(?!null\b)\S", answer) for field in missing]
        return sum(match is not None for match in written), len(missing)
    return sum(given.get(field) is not None for field in missing), len(missing)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%} ({part}/{whole})"
