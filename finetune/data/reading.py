"""From a source's rows to conversations or preferences, and the columns used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.labels import Only, chosen_by, rated_bad
from hybrid_ft.finetune.data.messages.advice import PAIRS_HERE, advice
from hybrid_ft.finetune.data.messages.answer_lists import as_pairs, holds_pairs
from hybrid_ft.finetune.data.messages.beside import left_out
from hybrid_ft.finetune.data.messages.column_templates import RUNAWAY_COLUMNS
from hybrid_ft.finetune.data.messages.columns import pair_format, row_format
from hybrid_ft.finetune.data.messages.conversation import NO_ANSWER, OPEN_END, Conversation
from hybrid_ft.finetune.data.messages.joined_answers import joined
from hybrid_ft.finetune.data.messages.judged_forms import JudgedForm, Label, judged_format, label_of, reader_of
from hybrid_ft.finetune.data.messages.judgement import Judgement, taken_apart
from hybrid_ft.finetune.data.messages.no_mapping import no_mapping, no_text
from hybrid_ft.finetune.data.messages.pair_forms import PairForm
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import MARGIN, Preference, Unusable, margin_from
from hybrid_ft.finetune.data.messages.row_forms import Form, needed
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, looked_at, origin
from hybrid_ft.finetune.data.sources.source import Opened, open_source
from hybrid_ft.finetune.data.tokens.arguments import COLUMN, row_arguments

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

LOOK_AHEAD = 64
"""Rows whose columns decide the form: optional columns may be missing from the first."""
_SAY = "say which column is which with"
_JOINED = 'where "{{ a }} {{ b }}" joins two'


def conversations(
    source: Source, counts: SourceCounts, wanted: np.ndarray | None = None, texts: bool = True
) -> Iterator[tuple[str, Conversation | PlainText | BadRow]]:
    """The conversations of a source, each with its origin (``file:line``), a bad row as the BadRow that says why.

    ``wanted``: as ``Convert``. ``texts``: whether rows of plain text are read for what they are where the source does
    not say so. ``counts`` fills meanwhile: rows read, form, notes, and at the end the columns and fields that nothing
    used. Raises InputError where the source cannot be read or is in no known form."""
    check_supervised(source)
    opened = open_source(source, wanted)
    opened.rows = _chosen(source, opened, counts)
    return converted(opened, counts, lambda rows: form_of_rows(source, rows, opened.name, texts), BadRow)


def check_supervised(source: Source) -> None:
    """Raise InputError for keys of a source that are for pairs or judged answers."""
    if source.labels or reader_of(source, "label"):
        text = f"data.sources: {source.path}: label and labels are for judged answers"
        raise InputError(f"{text}; train on them with hybrid-ft kto, or leave the key out")
    if source.pairs != "best_worst":
        raise InputError(f"data.sources: {source.path}: pairs: got {source.pairs}; only pairs have it, leave it out")


def check_of_pairs(source: Source) -> None:
    """Raise InputError for a key of a source that is for supervised rows."""
    if source.format is not None:
        text = f"data.sources: {source.path}: format: {source.format} is for supervised rows"
        raise InputError(f"{text}; leave it out, the format of pairs is recognised, or set columns")


def preferences(
    source: Source, counts: SourceCounts, wanted: np.ndarray | None = None, margins: bool = False
) -> Iterator[tuple[str, Preference | BadRow | Unusable]]:
    """The pairs of a source, each with its origin (``file:line``); in the place of one that is none, the reason.

    ``wanted``: as ``Convert``. ``counts`` fills meanwhile: rows read, form, notes, and at the end the columns and
    fields that nothing used. ``margins``: what a pair's row says of its margin is read. Raises InputError where the
    source cannot be read or holds no pairs."""
    check_of_pairs(source)
    opened = open_source(source, wanted)
    ahead, opened.rows = looked_at(_chosen(source, opened, counts), LOOK_AHEAD)
    if (label := label_of_pairs(source, [row for row in ahead if isinstance(row, Row)])) is not None:
        opened.notes.append("good and bad answers to one prompt are its pairs")
        judged = converted(
            opened, counts, lambda rows: _judged_form(source, label, rows, opened.name), (BadRow, Unusable)
        )
        return joined(judged, source.pairs == "all", opened.notes)
    opened.rows, read_as = as_pairs(opened.rows, source, opened.notes)
    return converted(opened, counts, lambda rows: pair_form_of(read_as, rows, opened.name), (BadRow, Unusable), margins)


def pair_each(source: Source) -> bool:
    """Whether each row of a source is one pair. Raises InputError where the source cannot be read."""
    ahead, _ = looked_at(iter(open_source(source).rows), LOOK_AHEAD)
    judged = label_of_pairs(source, [row for row in ahead if isinstance(row, Row)])
    return source.pairs != "all" and judged is None


def label_of_pairs(source: Source, rows: list[Row]) -> Label | None:
    """The label of answers that are to be joined to pairs; None where rows hold pairs, or nothing says
    how good they are."""
    if source.columns is not None:
        return label_of(source, rows) if reader_of(source, "label") else None
    label = label_of(source, rows)
    return label if label is not None and rows and not holds_pairs(rows) and row_format(source, rows) else None


def judgements(
    source: Source, counts: SourceCounts, wanted: np.ndarray | None = None
) -> Iterator[tuple[str, Judgement | BadRow | Unusable]]:
    """The judged answers of a source, each with its origin (``file:line``), those of a pair with the same; in the place
    of a row that holds none, the reason. ``wanted``: as ``Convert``. ``counts`` fills, as above."""
    opened = open_source(source, wanted)
    ahead, opened.rows = looked_at(_chosen(source, opened, counts), LOOK_AHEAD)
    label = label_of(source, [row for row in ahead if isinstance(row, Row)])
    if label is not None:
        yield from converted(
            opened, counts, lambda rows: _judged_form(source, label, rows, opened.name), (BadRow, Unusable)
        )
        return
    opened.rows, read_as = as_pairs(opened.rows, source, opened.notes)
    opened.notes.append("a pair is two answers, a good and a bad one")
    for place, made in converted(
        opened, counts, lambda rows: _judged_form(read_as, None, rows, opened.name), (BadRow, Unusable)
    ):
        if isinstance(made, Preference):
            for answer in taken_apart(made):
                yield place, answer
        else:
            yield place, made


def converted(
    opened: Opened,
    counts: SourceCounts,
    form_of: Callable[[list[Row]], Form | PairForm | JudgedForm],
    reason: type[BadRow] | tuple[type[BadRow], type[Unusable]],
    margins: bool = False,
) -> Iterator[tuple[str, Any]]:
    """The rows of a source as its form converts them, each with its origin; for a row that is none, the ``reason``.

    ``form_of`` finds the form from the first rows; whatever a form makes has a set ``unused`` and
    ``template_arguments``.
    """
    counts.name, counts.notes = opened.name, opened.notes
    ahead, rows = looked_at(iter(opened.rows), LOOK_AHEAD)
    good = [row for row in ahead if isinstance(row, Row)]
    form = form_of(good) if good else None
    columns: set[str] = set()
    unused: set[str] = set()
    read: set[str] = set()
    for row in rows:
        counts.read += 1
        place = origin(opened.name, row)
        if isinstance(row, BadRow | Unusable):
            yield place, row
            continue
        if form is None:  # nothing but bad rows so far
            form = form_of([row])
        columns.update(name for name, value in row.values.items() if value is not None)
        try:
            made = form.convert(row.values)
            if COLUMN in row.values and not isinstance(made, PlainText):
                made.template_arguments = row_arguments(row.values[COLUMN])
                read.add(COLUMN)
            if margins and isinstance(made, Preference) and MARGIN in row.values:
                made.margin = margin_from(row.values[MARGIN])
                read.add(MARGIN)
        except reason as why:
            if isinstance(form, Form) and why.kind in (NO_ANSWER, OPEN_END.format("user")) and holds_pairs([row]):
                why = BadRow(why.kind, f"{why}; {PAIRS_HERE}")
            yield place, why
            if why.kind == RUNAWAY_COLUMNS:
                return  # the next row might take as long
            continue
        unused |= made.unused
        for name in left_out(row.values, form.columns - made.unused, getattr(made, "messages", None)):
            counts.left_out.add(name, place)
        if isinstance(form, Form) and (bad := rated_bad(row.values, form.columns)):
            counts.rated_bad.add(bad, place)
        yield place, made
    if form is not None:
        counts.format, counts.reads = form.name, form.reads
        counts.ignored = sorted(columns - form.columns - read) + sorted(unused)


def _chosen(source: Source, opened: Opened, counts: SourceCounts) -> Iterator[Any]:
    """The rows that the source's ``only`` and ``without`` leave; one that cannot be read is not passed over."""
    choice = chosen_by(source, opened.name)
    return iter(opened.rows) if choice is None else _taken(opened.rows, choice, counts)


def _taken(rows: Iterator[Any], choice: Only, counts: SourceCounts) -> Iterator[Any]:
    for row in rows:
        if isinstance(row, BadRow) or choice.takes(row.values):
            yield row
        else:
            counts.passed_over += 1
    choice.check(counts.passed_over)


def form_of_rows(source: Source, rows: list[Row], name: str, texts: bool) -> Form:
    """How the first rows of a source are read. Raises InputError for rows in no known form."""
    form = row_format(source, rows)
    where = origin(name, rows[0])
    if form is not None and form.name == "text" and not texts and source.format != "text":
        text = f"{where}: rows are plain text, and model.chat_template asks for chats"
        raise InputError(f"{text}; set format: text to train every token of them, or say by columns which are turns")
    if form is not None:
        return form
    found = _columns(rows)
    if source.format:
        raise InputError(f"{where}: format {source.format} needs {needed(source.format)} (columns found: {found})")
    known = "messages | prompt, completion | instruction, output | conversations | text"
    fix = f"known formats: {known}; for anything else {_SAY} columns: {{prompt: ..., completion: ...}}, {_JOINED}"
    fix = advice(source, rows, "rows") or no_mapping(source, rows, name) or fix
    raise InputError(f"{where}: columns in no known format (found {found}); {fix}")


def pair_form_of(source: Source, rows: list[Row], name: str) -> PairForm:
    form = pair_format(source, rows)
    if form is not None:
        return form
    known = "known formats: chosen, rejected | output_1, output_2, preference | responses, scores, beside a prompt"
    lists = "of a list of answers {prompt: ..., answers: ..., scores: ...}, or ranks"
    fix = f"{known}; for anything else {_SAY} columns: {{prompt: ..., chosen: ..., rejected: ...}}, {_JOINED}; {lists}"
    raise _without(rows, name, "a pair", advice(source, rows, "pairs") or no_text(rows) or fix)


def _judged_form(source: Source, label: Label | None, rows: list[Row], name: str) -> JudgedForm | PairForm:
    form = pair_format(source, rows) if label is None else judged_format(source, label, rows)
    if form is not None:
        return form
    known = "known formats: prompt, completion | messages | instruction, output, beside a label; chosen, rejected"
    fix = f"{known}; or {_SAY} columns: {{prompt: ..., completion: ..., label: ...}}, {_JOINED}"
    raise _without(rows, name, "judged answers", advice(source, rows, "judged") or no_text(rows) or fix)


def _without(rows: list[Row], name: str, what: str, fix: str) -> InputError:
    return InputError(f"{origin(name, rows[0])}: no columns that hold {what} (found {_columns(rows)}); {fix}")


def _columns(rows: list[Row]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    return ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "") or "none"
