"""One source from its rows to preferences, with an account of what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.pair_cards import load_pair_card, pair_card_form, suggested_pair_card
from hybrid_ft.finetune.data.messages.pair_forms import PairForm, recognise_pairs
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.reading import SourceReport, converted
from hybrid_ft.finetune.data.report.tally import Tally
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, origin
from hybrid_ft.finetune.data.sources.source import open_source

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Source


@dataclass
class PairSourceReport(SourceReport):
    """The same account for pairs; ``cut`` counts pairs that lost the end of an answer."""

    cut_prompts: Tally = field(default_factory=Tally)
    split_line_ends: Tally = field(default_factory=Tally)

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {
            "cut_prompts": self.cut_prompts.as_dict(),
            "line_ends_split_from_header": self.split_line_ends.as_dict(),
        }


def preferences(source: Source, report: PairSourceReport) -> Iterator[tuple[str, Preference | BadRow | Unusable]]:
    """The pairs of a source, each with its origin (``file:line``); in the place of one that is none, the reason.

    ``report`` fills meanwhile: rows read, form, notes, and at the end the columns and fields that nothing used. Raises
    InputError where the source cannot be read or holds no pairs.
    """
    if source.format is not None:
        text = f"data.sources: {source.path}: format: {source.format} is for supervised rows"
        raise InputError(f"{text}; leave it out, the form of pairs is recognised, or set card")
    card = load_pair_card(source.card) if source.card else None
    opened = open_source(source, card.rows if card else None)
    return converted(opened, report, lambda rows: _form(source, rows, opened.name), (BadRow, Unusable))


def _form(source: Source, rows: list[Row], name: str) -> PairForm:
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
