"""Encodes batches of rows, and gives them back in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic

import pyarrow as pa

from hybrid_ft.finetune.data.source_rows import Batch, EncodedBatch, Rows, encoded_batch
from hybrid_ft.finetune.data.way import Made, Tokens, Way


class EncodingWorkers(Generic[Made, Tokens]):
    """What encodes rows by one way into one schema."""

    def __init__(self, way: Way[Made, Tokens], schema: pa.Schema) -> None:
        self._way, self._schema = way, schema

    def __enter__(self) -> EncodingWorkers[Made, Tokens]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def in_order(
        self, batches: Iterator[Batch], good: Callable[[Batch], Rows | None]
    ) -> Iterator[tuple[Batch, EncodedBatch | None]]:
        """Each batch with its rows encoded, None where ``good`` gives none of them to encode."""
        for batch in batches:
            rows = good(batch)
            yield batch, None if rows is None else encoded_batch(self._way, self._schema, rows)
