"""The same rows in files of every kind and packing, and what was read of them."""

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_ft.finetune.data.sources.rows import BadRow, Row

Read = Callable[..., list[Any]]
ROWS = [{"a": "one\u2028line", "b": "é"}, {"a": 'two, "quoted"\nline', "b": ""}, {"a": "\u0085x", "b": "漢"}]


def values(rows: list[Any]) -> list[dict[str, Any]]:
    assert all(isinstance(row, Row) for row in rows), [str(row) for row in rows if isinstance(row, BadRow)]
    return [row.values for row in rows]


def lines(rows: list[Any]) -> list[int]:
    return [row.line for row in rows]


def table(delimiter: str) -> bytes:
    import io

    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["a", "b"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def parquet() -> bytes:
    import io

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def arrow(writer: Any = pa.ipc.new_stream) -> bytes:
    import io

    file = io.BytesIO()
    rows = pa.Table.from_pylist(ROWS)
    with writer(file, rows.schema) as stream:
        stream.write(rows)
    return file.getvalue()


def empty_parquet() -> bytes:
    import io

    file = io.BytesIO()
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), file)
    return file.getvalue()


JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}
