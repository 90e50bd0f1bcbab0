"""How a source is read in chunks, in its first rows' form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.answer_lists import Expand, lists_of
from hybrid_ft.finetune.data.messages.pair_forms import PairForm
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.row_forms import Form
from hybrid_ft.finetune.data.reading import (
    LOOK_AHEAD,
    check_of_pairs,
    check_supervised,
    converted,
    form_of_rows,
    label_of_pairs,
    pair_form_of,
)
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.data.sources.source import Opened

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source
    from hybrid_ft.finetune.recipe.schema import Recipe


@dataclass(frozen=True)
class ChunkForm:
    """``expand`` puts pairs in the place of rows that hold lists of answers; ``notes`` say so. ``reason``: what a row
    that is none comes as; ``margins``: those of pairs are read."""

    form: Form | PairForm
    expand: Expand = iter
    notes: tuple[str, ...] = ()
    reason: type[BadRow] | tuple[type[BadRow], type[Unusable]] = BadRow
    margins: bool = False

    def convert(self, opened: Opened, counts: SourceCounts) -> Iterator[tuple[str, Any]]:
        """As ``reading.converted`` does it with all rows of a source."""
        opened.rows = self.expand(opened.rows)
        opened.notes += [note for note in self.notes if note not in opened.notes]
        return converted(opened, counts, lambda rows: self.form, self.reason, self.margins)


@dataclass(frozen=True)
class ChunkReader:
    """Of one kind of rows. ``check`` raises InputError for keys of a source that are for another kind;
    ``form`` finds how a source, of this name and with these first rows, is read, and raises InputError where
    it is in no known form."""

    check: Callable[[Source], None]
    form: Callable[[Source, list[Row], str], ChunkForm]


def reader_of(recipe: Recipe, texts: bool) -> ChunkReader:
    """``texts``: whether rows of plain text are read for what they are where a source does not say so."""
    if recipe.of_pairs is None:
        return ChunkReader(check_supervised, partial(_of_rows, texts=texts))
    return ChunkReader(check_of_pairs, partial(_of_pairs, margins=recipe.reward is not None))


def _of_rows(source: Source, first: list[Row], name: str, texts: bool) -> ChunkForm:
    return ChunkForm(form_of_rows(source, first, name, texts))


def _of_pairs(source: Source, first: list[Row], name: str, margins: bool) -> ChunkForm:
    if label_of_pairs(source, first) is not None:
        text = "its rows are judged one by one; which make pairs is known when all are read"
        raise InputError(f"{name}: {text}; leave out data.streaming, or write the pairs to a file")
    notes: list[str] = []
    expand, read_as = lists_of(first[:LOOK_AHEAD], source, notes)
    pairs = [row for row in expand(iter(first)) if isinstance(row, Row)]
    form = pair_form_of(read_as, (pairs or first)[:LOOK_AHEAD], name)
    return ChunkForm(form, expand, tuple(notes), (BadRow, Unusable), margins)
