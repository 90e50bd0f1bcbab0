"""Held-out rows of a stream, by a hash of what they ask."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.source_rows import text_hash
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.streaming.chunk_forms import reader_of
from hybrid_ft.finetune.data.streaming.source_stream import HeldOutRule, SourceStream

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.way import Way
    from hybrid_ft.finetune.recipe.schema import Recipe

MOST = 500
"""Rows kept where the recipe says no number."""
_SEARCHED = 50_000
"""Rows of the stream looked through; they are converted, and only held-out ones encoded."""


def held_out_rows(recipe: Recipe, way: Way[Any, Any], texts: bool) -> Dataset:
    """The held-out rows with the smallest hashes among the stream's first ones, the same in whatever order these come.

    Columns as the way's schema. A row that cannot be used is passed over: the stream says so when it comes to it.
    Raises InputError where there is none.
    """
    rule = HeldOutRule(recipe.data.eval.fraction, recipe.data.seed)
    sources = [SourceStream(source, way, reader_of(recipe, texts), rule) for source in recipe.data.sources]
    most, searched = recipe.data.eval.count or MOST, 0
    found: list[tuple[float, str, int, Any]] = []  # a heap, the largest hash first
    counts = [SourceCounts("") for _ in sources]
    while sources and searched < _SEARCHED:
        for number, source in reversed(list(enumerate(sources))):
            chunk = source.converted_chunk(counts[number])
            if chunk is None:
                del sources[number], counts[number]
                continue
            for origin, item in chunk:
                searched += 1
                if not isinstance(item, BadRow | Unusable) and rule.holds(asked := text_hash(item.asked())):
                    heapq.heappush(found, (-rule.hash(asked), origin, searched, item))
                    if len(found) > most:
                        heapq.heappop(found)
    found.sort(key=lambda one: (-one[0], one[1]))
    columns: list[dict[str, Any]] = []
    for (_, origin, _, _), tokens in zip(found, way.encode([one[3] for one in found]), strict=False):
        try:
            if isinstance(tokens, BadRow | Unusable):
                continue
            fitted, _ = way.fit(tokens)
        except (BadRow, Unusable):
            continue
        pieces = fitted if isinstance(fitted, Sequence) else [fitted]
        columns += [piece.columns() | {"origin": origin} for piece in pieces]
    if not columns:
        raise InputError(
            f"data.eval.fraction: got {recipe.data.eval.fraction:g}; no row that can be used among the first {searched:,} "
            "of the stream is held out by it; raise it, or give data.eval.sources"
        )
    return as_dataset(columns, way.schema)


def rows_of_their_own(recipe: Recipe, way: Way[Any, Any], texts: bool) -> tuple[Dataset, list[SourceCounts]]:
    """The rows of ``data.eval.sources``, all of them, with their counts. Raises InputError."""
    reader, rule = reader_of(recipe, texts), HeldOutRule(0.0, 0)
    sources = [SourceStream(source, way, reader, rule) for source in recipe.data.eval.sources]
    tables: list[pa.Table] = []
    for source in sources:
        while (chunk := source.next_table()) is not None:
            tables.append(chunk[0])
    if not any(len(table) for table in tables):
        raise InputError("data.eval.sources: no row can be used")
    return Dataset(pa.concat_tables(tables).combine_chunks()), [source.counts for source in sources]


def as_dataset(columns: Sequence[dict[str, Any]], schema: pa.Schema) -> Dataset:
    """Rows in memory; there are few."""
    return Dataset(pa.Table.from_pydict({name: [row[name] for row in columns] for name in schema.names}, schema=schema))
