"""Rows of .csv, .tsv and .parquet files."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from hybrid_ft.errors import InputError, short
from hybrid_ft.finetune.data.limits import TookTooLong, limited
from hybrid_ft.finetune.data.sources.json_rows import MAX_LINE_BYTES, Lines, decode
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

_PARQUET_ROWS = 256  # decoded at a time
# bytes that decoding them may take. A column says once what a million rows repeat: 1 MB of file may be a terabyte of rows.
_PARQUET_MEMORY = 4 * 2**30
_PARQUET_SECONDS = 60.0
_FIELD_LIMIT = threading.Lock()  # the csv module's limit is one for the whole process


def delimited_rows(stream: BinaryIO, name: str, delimiter: str) -> Iterator[Row | BadRow]:
    """Rows of a table with a header line; fields may be quoted and hold line ends. Every value is a string.

    A row's line is that of its first character. Raises InputError for a header that names no columns, or stands alone.
    """
    lines = _TextLines(stream)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    some = False
    while True:
        start = lines.number + 1
        try:
            cells = _next_cells(reader)
            if cells is None:
                break
            if not cells:
                continue  # a blank line
            if header is None:
                header = _header(cells, name, start)
                _refuse_other_separator(header, delimiter, name, start)
                continue
            some = True
            yield Row(start, _named(header, cells))
        except BadRow as bad:
            if header is None:
                raise InputError(f"{name}:{start}: {bad}") from None
            bad.line, some = start, True
            yield bad
    if header is not None and not some:
        raise InputError(f"{name}: 0 rows; only a header")


class _TextLines:
    """The lines of a stream as text, for the csv module."""

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = Lines(stream)

    @property
    def number(self) -> int:
        return self._lines.number

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw = self._lines.next()
        if raw == b"":
            raise StopIteration
        if raw is None:
            raise BadRow("line too long", f"longer than {MAX_LINE_BYTES // 2**20} MB")
        text = decode(raw, self.number)
        if "\0" in text:
            raise BadRow("NUL byte", f"NUL byte at column {text.index(chr(0)) + 1}; text holds none")
        return text


def _next_cells(reader: Any) -> list[str] | None:
    with _FIELD_LIMIT:
        limit = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            return next(reader)
        except StopIteration:
            return None
        except csv.Error as error:
            reason = str(error).replace("unexpected end of data", "a quote is opened and never closed")
            if reason.startswith("new-line character seen"):
                reason = "a carriage return alone ends no line; save the file with \\n line ends"
            raise BadRow("not a table row", f"cannot be read as a row ({reason})") from None
        finally:
            csv.field_size_limit(limit)


def _header(cells: list[str], name: str, line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    if not all(header):
        raise InputError(f"{name}:{line}: column {header.index('') + 1} has no name; the first line names the columns")
    for cell in header:
        if header.count(cell) > 1:
            raise InputError(f"{name}:{line}: column {short(cell)!r} is there twice; give each column its own name")
    return header


def _refuse_other_separator(header: list[str], delimiter: str, name: str, line: int) -> None:
    """A header that is one column and holds another separator: the file is read by the wrong one."""
    fixes = {",": "name the file .csv", "\t": "name the file .tsv", ";": "separate the columns by commas"}
    for other, fix in fixes.items():
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise InputError(f"{name}:{line}: the header is one column, {short(repr(header[0]))}; {fix}")


def _named(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        text = f"has {len(cells)} fields where the header names {len(header)}; quote fields that hold the separator"
        raise BadRow("not a table row", text)
    return dict(zip(header, cells, strict=True))


def parquet_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """Rows of a Parquet file, numbered from 1. A column of objects has every key in every row, null where the row had none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        batches = pq.ParquetFile(file).iter_batches(_PARQUET_ROWS)
        while True:
            with limited(_PARQUET_SECONDS, _PARQUET_MEMORY):
                batch = next(batches, None)
                rows = batch.to_pylist() if batch is not None else []
            if batch is None:
                break
            for values in rows:
                number += 1
                yield Row(number, values)
        if not number:
            raise InputError(f"{name}: 0 rows; only column names")
    except (MemoryError, TookTooLong):
        size = f"{_PARQUET_ROWS} rows unpack to more than {_PARQUET_MEMORY // 2**30} GB"
        raise InputError(f"{name}: after row {number}, {size}; a row is at most {MAX_LINE_BYTES // 2**20} MB") from None
    except (pa.ArrowException, OSError) as error:
        reason = short(str(error).splitlines()[0], 160) if str(error) else type(error).__name__
        raise InputError(f"{name}: not a Parquet file that can be read ({reason})") from None
