"""Rows as they lie on disk or the hub, from any on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.file import file_rows
from hybrid_ft.finetune.data.sources.hub import load_from_hub
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row, taken
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.nearest import nearest_file

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source


class LocalRows:
    """The rows of files, one file after another. ``place``: file, its rows read, the line of the last of them."""

    def __init__(self, name: str, files: list[str], notes: list[str]) -> None:
        self.name, self.files, self.notes = name, files, notes
        self.load([0, 0, 0])

    def place(self) -> list[Any]:
        return [self._file, self._read, self._line]

    def load(self, place: list[Any]) -> None:
        """Go on behind the rows read at ``place``."""
        self._file, self._read, self._line = place
        self._rows = self._from_here()

    def rewind(self) -> None:
        self.load([0, 0, 0])

    def take(self, size: int) -> list[Row | BadRow]:
        """The next rows, fewer at the end, or before a place that cannot be read. Raises InputError at that place."""
        rows, self._rows = taken(self._rows, size)
        return rows

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(os.path.getsize(file) for file in self.files)

    def _from_here(self) -> Iterator[Row | BadRow]:
        while self._file < len(self.files):
            file, found = self.files[self._file], list[str]()
            try:
                for row in file_rows(file, found, (self._read, self._line)):
                    row.file = file
                    self._read, self._line = self._read + 1, row.line
                    self._note(found)
                    yield row
            except NoRows:
                if len(self.files) == 1:
                    raise
                found.append("files without a row")
            self._note(found)
            self._file, self._read, self._line = self._file + 1, 0, 0

    def _note(self, found: list[str]) -> None:
        self.notes += [note for note in found if note not in self.notes]
        found.clear()


class HubRows:
    """The rows of a dataset of the hub, fetched as they are asked for. ``place``: rows read,
    and datasets' own state."""

    def __init__(self, source: Source, name: str) -> None:
        self.name, self.notes = name, ["read from the hub as it is trained on"]
        self._dataset = load_from_hub(source, name, nearest_file(source.path), streaming=True)
        self._start = self._dataset.state_dict()
        self.rewind()

    def place(self) -> list[Any]:
        return [self._read, self._dataset.state_dict()]

    def load(self, place: list[Any]) -> None:
        """Go on behind the rows read at ``place``."""
        self._read = place[0]
        self._dataset.load_state_dict(place[1])
        self._rows = self._from_here()

    def rewind(self) -> None:
        self.load([0, self._start])

    def take(self, size: int) -> list[Row | BadRow]:
        """The next rows, fewer at the end, or before a place that cannot be read. Raises InputError at that place."""
        rows, self._rows = taken(self._rows, size)
        return rows

    def _from_here(self) -> Iterator[Row | BadRow]:
        for values in self._dataset:
            self._read += 1
            yield Row(self._read - 1, values)  # numbered as the hub shows them, from 0
        if not self._read:
            raise InputError(f"{self.name}: 0 rows")


RawRows = LocalRows | HubRows


def raw_rows(source: Source) -> RawRows:
    """Open a source to be read as it comes. Raises InputError."""
    opened = open_source(source)
    if all(os.path.exists(file) for file in opened.files):
        return LocalRows(opened.name, opened.files, list(opened.notes))
    return HubRows(source, opened.name)
