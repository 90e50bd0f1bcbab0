"""Where rows come from: local files, packed or not, and datasets of the Hugging Face hub."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from hybrid_ft.errors import InputError, short
from hybrid_ft.finetune.data.sources.hub import load_from_hub
from hybrid_ft.finetune.data.sources.json_rows import json_rows
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.data.sources.tables import delimited_rows, parquet_rows
from hybrid_ft.finetune.recipe.nearest import nearest_file

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
MOST_UNPACKED = 2**30
"""Bytes that a packed file may unpack to where it is held whole: a few MB of zeros, packed, are gigabytes."""
_PACKED: dict[str, Callable[[str], Any]] = {".gz": gzip.open, ".bz2": bz2.open}


@dataclass
class Opened:
    """A source being read. ``notes`` fills while ``rows`` are taken: what the file turned out to be."""

    name: str
    rows: Iterator[Row | BadRow]
    notes: list[str] = field(default_factory=list)


def open_source(source: Source) -> Opened:
    """Open a recipe's source.

    Raises InputError, at once or while rows are taken, for what cannot be opened or read to its end: status 2 for a
    file, 3 where the hub cannot be reached.
    """
    if os.path.exists(source.path) or _only_a_file(source.path):
        return _open_file(source.path)
    return _open_hub(source)


def _only_a_file(path: str) -> bool:
    """Whether a path that does not exist cannot be the name of a hub dataset."""
    parts = path.split("/")
    return len(parts) > 2 or "" in parts or path.startswith((".", "~")) or _suffixes(path)[0] in SUFFIXES


def _suffixes(path: str) -> tuple[str, str]:
    """``(".jsonl", ".gz")``: the form and the packing, in lower case."""
    name, packing = os.path.splitext(path.lower())
    return (os.path.splitext(name)[1], packing) if packing in _PACKED else (packing, "")


def _open_file(path: str) -> Opened:
    suffix, packing = _suffixes(path)
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder; name a file in it{_files_in(path)}")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file{nearest_file(path)}")
    if suffix == ".ndjson":
        suffix = ".jsonl"
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise InputError(f"{path}: is not a kind of file that can be read; use {known}, each also .gz or .bz2")
    opened = Opened(path, iter(()))
    opened.rows = _file_rows(path, suffix, packing, opened.notes)
    return opened


def _file_rows(path: str, suffix: str, packing: str, notes: list[str]) -> Iterator[Row | BadRow]:
    line = 0
    some = False
    try:
        with closing(_open_bytes(path, packing)) as stream:
            _refuse_other_data(stream, path, suffix)
            for row in _parsed(stream, path, suffix, notes):
                some, line = True, row.line
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _unpacking(path, packing, line, error) from None
    except OSError as error:
        if packing and error.strerror is None:
            raise _unpacking(path, packing, line, error) from None
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(
            f"{path}: does not fit into memory; write it as JSON lines, which are read one by one"
        ) from None
    if not some:
        raise InputError(f"{path}: 0 rows; the file is empty")


def _unpacking(path: str, packing: str, line: int, error: Exception) -> InputError:
    where = f"{path}:{line}: the {packing[1:]} data after this line" if line else f"{path}: the {packing[1:]} data"
    cut_short = isinstance(error, EOFError)
    reason = "ends in the middle; the file was cut short" if cut_short else f"is damaged ({short(str(error))})"
    return InputError(f"{where} {reason}")


def _open_bytes(path: str, packing: str) -> io.BufferedReader:
    if not packing:
        return Path(path).open("rb")
    return _Unpacked(path, packing)


class _Unpacked(io.BufferedReader):
    """A packed file behind a buffer, without which gzip and bz2 objects have no peek and only slow lines.

    What asks for all that is left, or for a line however long, gets at most MOST_UNPACKED bytes, or an InputError.
    """

    def __init__(self, path: str, packing: str) -> None:
        super().__init__(cast(io.RawIOBase, _PACKED[packing](path)), 2**18)
        self._path = path

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        held = io.BytesIO()
        while piece := super().read(2**20):  # asked for at once, the most would be allocated for every file
            held.write(piece)
            self._refuse_too_large(held.tell())
        return held.getvalue()

    def readline(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().readline(size)
        line = super().readline(MOST_UNPACKED + 1)
        self._refuse_too_large(len(line))
        return line

    def _refuse_too_large(self, size: int) -> None:
        if size > MOST_UNPACKED:
            raise InputError(
                f"{self._path}: unpacks to more than {MOST_UNPACKED // 2**20:,} MB, which would be held in memory; "
                "unpack it, or write it as JSON lines, which are read one by one"
            )


def _refuse_other_data(stream: io.BufferedReader, path: str, suffix: str) -> None:
    start = stream.peek(4)[:4]
    if suffix == ".parquet":
        return
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}:1: is UTF-16; save the file as UTF-8")
    if start[:2] == b"\x1f\x8b":
        raise InputError(f"{path}:1: is gzip data; name the file {os.path.basename(path)}.gz")
    if start == b"PK\x03\x04":
        raise InputError(f"{path}:1: is a zip archive; unpack it and name a file that was in it")


def _parsed(stream: io.BufferedReader, path: str, suffix: str, notes: list[str]) -> Iterator[Row | BadRow]:
    binary = cast(BinaryIO, stream)
    if suffix in (".csv", ".tsv"):
        return delimited_rows(binary, path, "\t" if suffix == ".tsv" else ",")
    if suffix == ".parquet":
        return parquet_rows(binary if _seekable(stream) else io.BytesIO(stream.read()), path)
    return json_rows(binary, path, suffix, notes)


def _seekable(stream: io.BufferedReader) -> bool:
    """Whether seeking is cheap: in a plain file, not in a packed one."""
    return isinstance(stream.raw, io.FileIO)


def _files_in(folder: str) -> str:
    names = sorted(name for name in os.listdir(folder) if _suffixes(name)[0] in SUFFIXES)
    more = ", ..." if len(names) > 5 else ""
    return f" ({', '.join(names[:5])}{more})" if names else ", none of which is a data file"


def _open_hub(source: Source) -> Opened:
    name = f"{source.path}[{source.split}]"
    return Opened(name, _hub_rows(source, name))


def _hub_rows(source: Source, name: str) -> Iterator[Row]:
    dataset = load_from_hub(source, name, nearest_file(source.path))
    if not len(dataset):
        raise InputError(f"{name}: 0 rows")
    for number, values in enumerate(dataset):
        yield Row(number, values)
