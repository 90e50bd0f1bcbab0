"""Columns by which answers were rated, and which ratings are good."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hybrid_ft.finetune.data.messages.written_columns import ref
from hybrid_ft.finetune.data.sources.rows import Row

_RATINGS = (
    "overall",
    "overall_score",
    "overall_rating",
    "helpfulness",
    "quality",
    "rating",
    "score",
    "stars",
    "reward",
)
_MOST_RATINGS = 10


def rated_by(columns: Sequence[str], rows: Sequence[Row]) -> tuple[str, dict[int, bool]] | None:
    """The column of whole numbers that an answer was rated by, and which of them, those above the middle, are good."""
    for column in (name for known in _RATINGS for name in columns if name.lower() == known):
        values = [row.values[column] for row in rows if row.values.get(column) is not None]
        if all(type(value) is int or (type(value) is float and value.is_integer()) for value in values):
            numbers = sorted({int(value) for value in values})
            if 2 <= len(numbers) and numbers[-1] - numbers[0] <= _MOST_RATINGS:
                middle = (numbers[0] + numbers[-1]) / 2
                return column, {number: number > middle for number in range(numbers[0], numbers[-1] + 1)}
    return None


def scored_by(columns: Sequence[str], rows: Sequence[Row]) -> str | None:
    """A template that says of an answer with a score, any number, whether it is above the middle of those seen."""
    for column in (name for known in _RATINGS for name in columns if name.lower() == known):
        values = [row.values[column] for row in rows if row.values.get(column) is not None]
        if all(type(value) in (int, float) and math.isfinite(value) for value in values) and len(set(values)) > 1:
            middle = 0.5 if all(0 <= value <= 1 for value in values) else (min(values) + max(values)) / 2
            return f"{{{{ {ref(column)} > {middle:.4g} }}}}"
    return None
