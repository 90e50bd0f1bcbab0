"""A stream's rows, as it would train on them, in one parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.streaming.account import account_of
from hybrid_ft.finetune.data.trained_rows import marked, names_of, tables, write_tables

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.report.account import Account
    from hybrid_ft.finetune.data.streaming.prepared import StreamPrepared
    from hybrid_ft.finetune.data.streaming.stream_rows import AnyRow
    from hybrid_ft.finetune.data.streaming.windows import RowStream, State

_ROWS = 64  # of a table


def check_rows(rows: int | None, prepared: StreamPrepared) -> None:
    """Raise InputError where all rows are wanted of a stream whose sources begin again as they end."""
    if rows is None and prepared.endless:
        raise InputError("--out: a stream whose sources have weights never ends; say how many rows with --rows N")


def write_stream(prepared: StreamPrepared, file: Path, rows: int | None) -> tuple[int, Account]:
    """Write the rows of the stream in the order of training, the first ``rows`` of them or one whole pass, and those
    held out.

    Columns as ``trained_rows.write_rows`` has them. Gives how many rows were written, and the account of all that
    was read for them. Holds one window of rows and a row group in memory. Raises InputError for data that must
    not be trained on.
    """
    stream = prepared.open()
    counted: list[State] = []
    names = names_of(prepared)

    def parts() -> Iterator[pa.Table]:
        ahead = islice(_one_pass(stream, counted), rows)
        while some := list(islice(ahead, _ROWS)):
            found = [row.columns() for row in some]
            values = {name: [row[name] for row in found] for name in found[0]}
            yield marked("train", pa.Table.from_pydict(values, schema=prepared.train.features.arrow_schema), names)
        if prepared.eval is not None:
            yield from tables("held_out", prepared.eval, names)

    written = write_tables(file, parts())
    return written, account_of(counted[-1], prepared.report)


def _one_pass(stream: RowStream, counted: list[State]) -> Iterator[AnyRow]:
    """The rows of the windows, pack by pack, until the stream would begin again where it can."""
    for window in stream.windows():
        if window.end["passes"] and not stream.endless:
            return
        counted[:] = [window.end]
        for one in window.packs:
            yield from (window.rows[row] for row in one)
