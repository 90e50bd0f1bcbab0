"""The formats of judged answers: supervised rows beside a label."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.column_files import load_column_file
from hybrid_ft.finetune.data.messages.column_paths import at
from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate, is_template
from hybrid_ft.finetune.data.messages.columns import as_key, row_format
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.training_marks import MARKS
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, columns_of

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

Values = Mapping[str, Any]

LABELS = ("label", "thumbs_up", "thumbs", "thumb", "feedback", "vote", "liked", "desirable")
"""The first of these columns that a source has says whether an answer was good."""
_GOOD = (
    "true",
    "1",
    "+1",
    "good",
    "up",
    "thumbs_up",
    "thumbs up",
    "like",
    "liked",
    "positive",
    "desirable",
    "yes",
    "👍",
)
_BAD = (
    *("false", "0", "-1", "bad", "down", "thumbs_down", "thumbs down"),
    *("dislike", "disliked", "negative", "undesirable", "no", "👎"),
)
MEANING = dict.fromkeys(_GOOD, True) | dict.fromkeys(_BAD, False)


@dataclass(frozen=True)
class JudgedForm:
    """How a source's rows are read. ``reads``: the columns that are used, in words; ``columns``: their names."""

    name: str
    reads: str
    columns: frozenset[str]
    convert: Callable[[Values], Judgement]


def reader_of(source: Source, ours: str) -> Callable[[Values], Any] | None:
    """What reads one of our columns from a row, by the source's mapping; None where that does not name it."""
    columns = source.columns
    if columns is not None and columns.file is not None:
        columns = load_column_file(columns.file).columns
    theirs = None if columns is None else columns.named().get(ours)
    if theirs is None:
        return None
    return ColumnTemplate(theirs) if is_template(theirs) else lambda values: at(values, theirs)


@dataclass(frozen=True)
class Label:
    """``column`` of a source's rows says whether an answer was good; ``read`` takes it from a row."""

    column: str
    read: Callable[[Values], Any]
    mapped: bool


def label_of(source: Source, rows: list[Row]) -> Label | None:
    """The source's label: by its mapping, else recognised from the columns; None where the rows are to be pairs.

    Raises InputError for a mapping of answers without one.
    """
    if (read := reader_of(source, "label")) is not None:
        return Label("label", read, True)
    if source.columns is None:
        column = next((name for columns in columns_of(rows) for name in LABELS if name in columns), None)
        return None if column is None else Label(column, lambda values: values.get(column), False)
    if all(reader_of(source, name) is None for name in ("chosen", "output_1", "answers")):
        text = "must name label, the column that says whether an answer was good; or chosen and rejected"
        raise InputError(f"data.sources: {source.path}: columns: {text}")
    return None


def judged_format(source: Source, label: Label, rows: list[Row]) -> JudgedForm | None:
    """How a source's rows are read: as supervised rows, beside the label; None where the columns are
    of no known format."""
    form = row_format(source, rows)
    if form is None:
        return None
    meaning = {as_key(key): value for key, value in (source.labels or {}).items()} or MEANING
    reads = form.reads if label.mapped else f"{form.reads}; {label.column} says whether it was good"

    def convert(values: Values) -> Judgement:
        marked: set[str] = set()
        row = form.convert(_without_flags(values, marked))
        if isinstance(row, PlainText):
            raise BadRow(
                "no prompt", "text alone; a judged answer stands behind what it answers: prompt and completion"
            )
        good = _good(label.read(values), label.column, meaning)
        return Judgement(Conversation(row.messages, row.tools, row.unused | marked), good, row.noticed)

    columns = form.columns if label.mapped else form.columns - set(MARKS) | {label.column}
    return JudgedForm(f"judged {form.name}", reads, columns, convert)


def _without_flags(values: Values, marked: set[str]) -> Values:
    """A row's or a turn's own mark says whether it is imitated; here the label says what is learned from the answer.

    The turns' marks, which nothing uses, are added to ``marked``.
    """

    def turn(item: Any, column: str) -> Any:
        if not isinstance(item, dict):
            return item
        marked.update(f"{column}[].{key}" for key in item if key in MARKS and item[key] is not None)
        return {key: inner for key, inner in item.items() if key not in MARKS}

    return {
        name: [turn(item, name) for item in value] if isinstance(value, list) else value
        for name, value in values.items()
        if name not in MARKS
    }


def _good(value: Any, column: str, meaning: Mapping[str, bool]) -> bool:
    """Raises Unusable for an answer that nobody judged, BadRow for a judgement that is not known."""
    if value is None or value == "":
        raise Unusable("no label", f"{column} is {shown(value)}; nobody said whether the answer was good")
    key = as_key(value).strip().lower()
    known = {name.lower(): good for name, good in meaning.items()}
    if key not in known:
        given = meaning is not MEANING
        rule = ", ".join(meaning) if given else "true or false, 1 or 0, 1 or -1, good or bad, up or down"
        fix = "name it under labels" if given else "say what values mean: labels: {5: true, 1: false}"
        raise BadRow("unknown label", f"{column}: got {shown(value)}; must be one of {rule}; {fix}")
    return known[key]
