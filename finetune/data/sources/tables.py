"""Rows of .csv and .tsv files."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

from hybrid_ft.errors import InputError, short
from hybrid_ft.finetune.data.sources.json_rows import MAX_LINE_BYTES, Lines, decode
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row

_FIELD_LIMIT = threading.Lock()  # the csv module's limit is one for the whole process


def delimited_rows(stream: BinaryIO, name: str, delimiter: str, notes: list[str]) -> Iterator[Row | BadRow]:
    """Rows of a table with a header line; fields may be quoted and hold line ends. Every value is a string.

    A first column without a name, the row numbers that pandas writes, is left out, and a note says so.
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
                if not header[0]:
                    notes.append("the first column has no name, not read")
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
        raise NoRows(f"{name}: 0 rows; only a header")


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
    if not all(header[1:]) or not any(header):
        column = header.index("", 1 if len(header) > 1 else 0) + 1
        raise InputError(f"{name}:{line}: column {column} has no name; the first line names the columns, give it one")
    for cell in header:
        if header.count(cell) > 1:
            raise InputError(f"{name}:{line}: column {short(cell)!r} is there twice; give each column its own name")
    return header


def _refuse_other_separator(header: list[str], delimiter: str, name: str, line: int) -> None:
    """A header that is one column and holds another separator: the file is read by the wrong one."""
    fixes = {
        ",": "name the file .csv",
        "\t": "name the file .tsv",
        ";": "separate the columns by commas",
        "|": "separate the columns by commas",
    }
    for other, fix in fixes.items():
        if len(header) == 1 and other != delimiter and other in header[0]:
            raise InputError(f"{name}:{line}: the header is one column, {short(repr(header[0]))}; {fix}")


def _named(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        text = f"has {len(cells)} fields where the header names {len(header)}; quote fields that hold the separator"
        raise BadRow("not a table row", text)
    return {column: cell for column, cell in zip(header, cells, strict=True) if column}
