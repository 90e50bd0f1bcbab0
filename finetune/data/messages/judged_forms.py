"""The formats of judged answers: a supervised row beside a label, or a pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.columns import as_key, pair_format, reader_of, row_format
from hybrid_ft.finetune.data.messages.conversation import TRAINING_FLAGS, Conversation
from hybrid_ft.finetune.data.messages.judgement import JudgedRow, Judgement
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

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
_BAD = ("false", "0", "-1", "bad", "down", "thumbs_down", "thumbs down", "dislike", "disliked", "negative", "undesirable", "no", "👎")  # fmt: skip
MEANING = dict.fromkeys(_GOOD, True) | dict.fromkeys(_BAD, False)


@dataclass(frozen=True)
class JudgedForm:
    """How a source's rows are read. ``reads``: the columns that are used, in words; ``columns``: their names."""

    name: str
    reads: str
    columns: frozenset[str]
    convert: Callable[[Values], JudgedRow]


def judged_format(source: Source, rows: list[Row]) -> JudgedForm | None:
    """How a source's rows are read: answers beside a label, or pairs, whose two answers are one good and one bad; None
    where the columns are of neither."""
    columns = {name for row in rows for name in row.values}
    label = next((name for name in LABELS if name in columns), None)
    read = reader_of(source, "label")
    if read is None and (source.columns is not None or label is None):
        if source.columns is not None and not reader_of(source, "chosen") and not reader_of(source, "output_1"):
            text = "must name label, the column that says whether an answer was good; or chosen and rejected"
            raise InputError(f"data.sources: {source.path}: columns: {text}")
        return _of_pairs(source, rows)
    form = row_format(source, rows)
    if form is None:
        return None
    meaning = {as_key(key): value for key, value in (source.labels or {}).items()} or MEANING
    if read is None:
        assert label is not None
        named, reads, used = label, f"{form.reads}; {label} says whether it was good", form.columns | {label}
        read = _column(label)
    else:
        named, reads, used = "label", form.reads, form.columns

    def convert(values: Values) -> JudgedRow:
        row = form.convert(_without_flags(values))
        good = _good(read(values), named, meaning)
        return JudgedRow([Judgement(Conversation(row.messages, row.tools), good)], row.unused)

    return JudgedForm(f"judged {form.name}", reads, used, convert)


def _of_pairs(source: Source, rows: list[Row]) -> JudgedForm | None:
    form = pair_format(source, rows)
    if form is None:
        return None

    def convert(values: Values) -> JudgedRow:
        pair = form.convert(values)
        answers = [Judgement(side, good) for side, good in zip(pair.sides(), (True, False), strict=True)]
        return JudgedRow(answers, pair.unused)

    reads = f"{form.reads}; a pair is two answers, a good and a bad one"
    return JudgedForm(f"pairs, {form.name}", reads, form.columns, convert)


def _without_flags(values: Values) -> Values:
    """A turn's own flag says whether it is imitated; here the label says what is learned from the answer."""

    def turn(item: Any) -> Any:
        return (
            {key: inner for key, inner in item.items() if key not in TRAINING_FLAGS} if isinstance(item, dict) else item
        )

    return {
        name: [turn(item) for item in value] if isinstance(value, list) else value for name, value in values.items()
    }


def _column(name: str) -> Callable[[Values], Any]:
    return lambda values: values.get(name)


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
