"""Rows of a source, and rows that cannot be used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, TypeVar

from hybrid_ft.errors import InputError

Taken = TypeVar("Taken")


@dataclass(slots=True)
class Row:
    """One row as it was read. ``line`` is where it begins in its file, or its number where there are no lines.

    ``which`` says which one it is where several rows begin on that line: ``row 37``, ``key "abc"``. ``file`` is the
    file, where the source has several.
    """

    line: int
    values: dict[str, Any]
    which: str = ""
    file: str = ""


class BadRow(Exception):
    """A row that cannot be trained on.

    ``kind`` is the short reason under which such rows are counted; the message says field, value, rule and fix,
    without the file and line, which whoever reads the source puts before it. ``line``, ``which`` and ``file`` are set
    where the row itself could not be read.
    """

    def __init__(self, kind: str, text: str, line: int = 0) -> None:
        # a column's name or a value may hold a line separator or a terminal's control characters
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))
        self.kind = kind
        self.line = line
        self.which = ""
        self.file = ""

    def __reduce__(self) -> Any:
        """Whole from one process to another: an exception's arguments are its message alone."""
        return type(self), (self.kind, str(self), self.line), {"which": self.which, "file": self.file}


class NoRows(InputError):
    """A file without a row; one of several may be."""


def taken(rows: Iterator[Taken], count: int) -> tuple[list[Taken], Iterator[Taken]]:
    """The next ``count`` rows, fewer at the end, and an iterator of the rest.

    Whoever looks at several rows at once takes them so. Of a file that cannot be read to its end the rows before that
    place come first, and what is said of them; the InputError is raised by the rest, or here where no row is before it.
    """
    found: list[Taken] = []
    try:
        found.extend(islice(rows, count))  # what came before an error stays in it
    except InputError as error:
        if not found:
            raise
        return found, _raising(error)
    return found, rows


def _raising(error: InputError) -> Iterator[Any]:
    raise error
    yield


def looked_at(rows: Iterator[Taken], count: int) -> tuple[list[Taken], Iterator[Taken]]:
    """The first rows, as ``taken``, and all of them from the first."""
    first, rest = taken(rows, count)
    return first, chain(first, rest)


def columns_of(rows: Iterable[Row]) -> list[set[str]]:
    """The columns that hold something in one of the rows, and all: a table has null where no row has anything."""
    held = {name for row in rows for name, value in row.values.items() if value is not None}
    return [held, {name for row in rows for name in row.values}]


class Placed(Protocol):
    """A row, or the reason why there is none."""

    line: int
    which: str
    file: str


def origin(name: str, row: Placed) -> str:
    """Where a row of the source ``name`` is found: ``file:line``, ``file:1 (row 37)``."""
    return f"{row.file or name}:{row.line}" + (f" ({row.which})" if row.which else "")


def repr_number(value: float) -> str:
    try:
        return repr(value)
    except ValueError:  # Python refuses to write an integer of more than 4,300 digits
        return "of thousands of digits"
