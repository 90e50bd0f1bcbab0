"""From a source's rows to conversations or preferences, and what its columns were used for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.card_rows import card_form
from hybrid_ft.finetune.data.messages.cards import load_card, suggested
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.pair_cards import load_pair_card, pair_card_form, suggested_pair_card
from hybrid_ft.finetune.data.messages.pair_forms import PairForm, recognise_pairs
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.messages.row_forms import Form, needed, recognise
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, origin
from hybrid_ft.finetune.data.sources.source import Opened, open_source

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Source

# Rows whose columns decide the form: optional columns may be missing from the first.
_LOOK_AHEAD = 64


def conversations(source: Source, counts: SourceCounts) -> Iterator[tuple[str, Conversation | BadRow]]:
    """The conversations of a source, each with its origin (``file:line``), a bad row as the BadRow that says why.

    ``counts`` fills meanwhile: rows read, form, notes, and at the end the columns and fields that nothing used. Raises
    InputError where the source cannot be read or is in no known form.
    """
    card = load_card(source.card) if source.card else None
    opened = open_source(source, card.rows if card else None)
    return converted(opened, counts, lambda rows: _form(source, rows, opened.name), BadRow)


def preferences(source: Source, counts: SourceCounts) -> Iterator[tuple[str, Preference | BadRow | Unusable]]:
    """The pairs of a source, each with its origin (``file:line``); in the place of one that is none, the reason.

    ``counts`` fills meanwhile: rows read, form, notes, and at the end the columns and fields that nothing used. Raises
    InputError where the source cannot be read or holds no pairs.
    """
    if source.format is not None:
        text = f"data.sources: {source.path}: format: {source.format} is for supervised rows"
        raise InputError(f"{text}; leave it out, the form of pairs is recognised, or set card")
    card = load_pair_card(source.card) if source.card else None
    opened = open_source(source, card.rows if card else None)
    return converted(opened, counts, lambda rows: _pair_form(source, rows, opened.name), (BadRow, Unusable))


def converted(
    opened: Opened,
    counts: SourceCounts,
    form_of: Callable[[list[Row]], Any],
    reason: type[Exception] | tuple[type[Exception], ...],
) -> Iterator[tuple[str, Any]]:
    """The rows of a source as its form converts them, each with its origin; for a row that is none, the ``reason``.

    ``form_of`` finds the form from the first rows; whatever a form makes has a set ``unused``.
    """
    counts.name, counts.notes = opened.name, opened.notes
    rows = iter(opened.rows)
    ahead = list(itertools.islice(rows, _LOOK_AHEAD))
    good = [row for row in ahead if isinstance(row, Row)]
    form = form_of(good) if good else None
    columns: set[str] = set()
    unused: set[str] = set()
    for row in itertools.chain(ahead, rows):
        counts.read += 1
        place = origin(opened.name, row)
        if isinstance(row, BadRow):
            yield place, row
            continue
        if form is None:  # nothing but bad rows so far
            form = form_of([row])
        columns.update(row.values)
        try:
            made = form.convert(row.values)
        except reason as why:
            yield place, why
            continue
        unused |= made.unused
        yield place, made
    if form is not None:
        counts.format, counts.reads = form.name, form.reads
        counts.ignored = sorted(columns - form.columns) + sorted(unused)


def _form(source: Source, rows: list[Row], name: str) -> Form:
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    if source.card:
        return card_form(source.card, columns)
    form = recognise(rows, source.format)
    if form is not None:
        return form
    where = origin(name, rows[0])
    found = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "") or "none"
    if source.format:
        raise InputError(f"{where}: format {source.format} needs {needed(source.format)} (columns found: {found})")
    raise InputError(f"{where}: columns in no known form (found {found}); {_fix(columns, rows[0])}")


def _fix(columns: list[str], row: Row) -> str:
    card = suggested(columns)
    if card:
        return f"looks like the card {card}: set card: {card}"
    holders = [name for name, value in row.values.items() if isinstance(value, list) and _holds_objects(value)]
    if len(holders) == 1 and len(row.values) <= 4:
        return f"{holders[0]} holds a list of objects: a card with rows: {holders[0]} reads those, if they are the rows"
    known = "messages | prompt, completion | instruction, output | conversations"
    return f"known without a card: {known}; for anything else write a card that says which column is which turn"


def _holds_objects(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value)


def _pair_form(source: Source, rows: list[Row], name: str) -> PairForm:
    columns = list(dict.fromkeys(column for row in rows for column in row.values))
    if source.card:
        return pair_card_form(source.card, columns)
    form = recognise_pairs(rows)
    if form is not None:
        return form
    found = ", ".join(columns[:12]) + (", ..." if len(columns) > 12 else "") or "none"
    card = suggested_pair_card(columns)
    known = "chosen, rejected | output_1, output_2, preference"
    fix = (
        f"looks like the card {card}: set card: {card}"
        if card
        else f"known without a card: {known}, beside a prompt; for anything else write a preference card"
    )
    raise InputError(f"{origin(name, rows[0])}: no columns that hold a pair (found {found}); {fix}")
