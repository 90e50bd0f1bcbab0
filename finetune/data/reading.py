"""One source from its rows to conversations, with an account of what it holds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.card_rows import card_form
from hybrid_ft.finetune.data.messages.cards import load_card, suggested
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.row_forms import Form, needed, recognise
from hybrid_ft.finetune.data.report.tally import Tallies, Tally
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, origin
from hybrid_ft.finetune.data.sources.source import Opened, open_source

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Source

# Rows whose columns decide the form: optional columns may be missing from the first.
_LOOK_AHEAD = 64


@dataclass
class SourceReport:
    """What one source holds and what became of it. ``kept``: rows in tokens, before the mix takes its share."""

    name: str
    form: str = ""
    reads: str = ""
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: int = 0
    kept: int = 0
    taken: int = 0
    dropped: Tallies = field(default_factory=Tallies)
    cut: Tally = field(default_factory=Tally)
    neutralised: Tallies = field(default_factory=Tallies)
    unshown_thoughts: Tally = field(default_factory=Tally)
    untrained: Tally = field(default_factory=Tally)

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.name,
            "form": self.form,
            "reads": self.reads,
            "ignored": self.ignored,
            "notes": self.notes,
            "rows_read": self.read,
            "rows_kept": self.kept,
            "rows_taken": self.taken,
            "dropped": self.dropped.as_dict(),
            "cut": self.cut.as_dict(),
            "control_strings_as_text": self.neutralised.as_dict(),
            "reasoning_not_shown": self.unshown_thoughts.as_dict(),
            "turns_not_trained_by_flag": self.untrained.as_dict("turns"),
        }


def conversations(source: Source, report: SourceReport) -> Iterator[tuple[str, Conversation | BadRow]]:
    """The conversations of a source, each with its origin (``file:line``), a bad row as the BadRow that says why.

    ``report`` fills meanwhile: rows read, form, notes, and at the end the columns and fields that nothing used. Raises
    InputError where the source cannot be read or is in no known form.
    """
    card = load_card(source.card) if source.card else None
    opened = open_source(source, card.rows if card else None)
    return converted(opened, report, lambda rows: _form(source, rows, opened.name), BadRow)


def converted(
    opened: Opened,
    report: SourceReport,
    form_of: Callable[[list[Row]], Any],
    reason: type[Exception] | tuple[type[Exception], ...],
) -> Iterator[tuple[str, Any]]:
    """The rows of a source as its form converts them, each with its origin; for a row that is none, the ``reason``.

    ``form_of`` finds the form from the first rows; whatever a form makes has a set ``unused``.
    """
    report.name, report.notes = opened.name, opened.notes
    rows = iter(opened.rows)
    ahead = list(itertools.islice(rows, _LOOK_AHEAD))
    good = [row for row in ahead if isinstance(row, Row)]
    form = form_of(good) if good else None
    columns: set[str] = set()
    unused: set[str] = set()
    for row in itertools.chain(ahead, rows):
        report.read += 1
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
        report.form, report.reads = form.name, form.reads
        report.ignored = sorted(columns - form.columns) + sorted(unused)


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
