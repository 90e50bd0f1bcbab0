"""How many rows are at work at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from hybrid_ft.finetune.data import source_rows
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.source_rows import SourceRows
from hybrid_ft.finetune.data.sources.rows import BadRow


def test_a_batch_of_long_rows_is_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What many long rows are in tokens would fill the memory; order and number of the rows stay."""
    monkeypatch.setattr(source_rows, "BATCH", 4)
    monkeypatch.setattr(source_rows, "CHARACTERS", 100)
    rows: list[Any] = [PlainText("x" * size) for size in (1, 1, 1, 1, 60, 60, 60, 60, 200, 1, 99, 1)]
    rows[9] = BadRow("bad", "bad")
    given = [(str(number), row) for number, row in enumerate(rows)]
    seen: list[list[str]] = []

    def in_order(batches: Iterator[Any], _: Any) -> Iterator[Any]:
        for batch in batches:
            seen.append([origin for origin, _ in batch])
            yield batch, None

    way: Any = type("Way", (), {"bad_rows_stop": False, "stops": {}})
    assert list(SourceRows(SourceCounts("a"), way, in_order).batches(iter(given))) == []
    assert seen == [["0", "1", "2", "3"], ["4", "5"], ["6", "7"], ["8"], ["9", "10", "11"]]
