"""A chunk of a stream in tokens; what cannot be trained sorted out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.source_rows import ASKED, Batch, EncodedBatch, Rows, SourceRows, encoded_batch
from hybrid_ft.finetune.data.way import Way


def encoded_chunk(
    rows: Iterator[tuple[str, Any]], counts: SourceCounts, way: Way[Any, Any]
) -> tuple[pa.Table, Sequence[int]]:
    """The rows that are kept, by the way's schema, and hashes of what they ask. ``counts`` go on.

    Raises InputError for a row that stops the run.
    """

    def in_order(
        batches: Iterator[Batch], good: Callable[[Batch], Rows | None]
    ) -> Iterator[tuple[Batch, EncodedBatch | None]]:
        for batch in batches:
            wanted = good(batch)
            yield batch, None if wanted is None else encoded_batch(way, way.schema, wanted)

    found = list(SourceRows(counts, way, in_order).batches(rows))
    tables = [batch.table for batch in found if batch.table is not None]
    asked = [number for batch in found for number in batch.numbers[ASKED]]
    return pa.Table.from_batches(tables, schema=way.schema).combine_chunks(), asked
