"""A chunk of a stream's rows in tokens; bad, useless and long ones sorted out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.token_store import Encoding, Item, SourceRows, Way

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.token_store import TokenStore


def encoded_chunk(
    rows: Iterator[tuple[str, Any]], counts: SourceCounts, way: Way[Any, Any]
) -> list[tuple[dict[str, Any], str]]:
    """The rows that are kept, as the way's schema has them, each with what it asks. ``counts`` go on.

    Raises InputError for a row that stops the run.
    """
    asked = _Asked()
    store: TokenStore = asked  # type: ignore[assignment] # of which adding is all that is called
    found = [
        tokens.columns() | {"origin": origin}
        for batch in SourceRows(0, counts, way).batches(rows, store)
        for origin, tokens in batch
    ]
    return list(zip(found, asked.texts, strict=True))


class _Asked:
    """In a store's place: what each row asks."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def add(self, source: int, item: Item, encoding: Encoding, piece: int = 0) -> None:
        self.texts.append(item.asked())
