"""One local file as rows, packed or not, each with its line."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import BinaryIO, cast

import numpy as np

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources import arrow
from hybrid_ft.finetune.data.sources.arrow import arrow_rows, parquet_rows
from hybrid_ft.finetune.data.sources.json_rows import decode, json_rows
from hybrid_ft.finetune.data.sources.packed import (
    DAMAGED,
    PACKINGS,
    Unpacked,
    open_bytes,
    refuse_packed,
    unpacking_error,
    zip_member,
)
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row
from hybrid_ft.finetune.data.sources.tables import delimited_rows

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
_COLUMNAR = (".parquet", ".arrow")


def suffixes(path: str) -> tuple[str, str]:
    """``(".jsonl", ".gz")``: the form and the packing, in lower case."""
    name, packing = os.path.splitext(path.lower())
    return (os.path.splitext(name)[1], packing) if packing in PACKINGS else (packing, "")


def is_data_file(path: str) -> bool:
    """Whether a file's name says that it can be read."""
    suffix, packing = suffixes(path)
    return suffix in SUFFIXES or packing == ".zip"


def known_length(path: str) -> int | None:
    """The rows of a file that says how many it has, as unpacked Parquet and Arrow do; None for any other, or a damaged
    one."""
    import pyarrow as pa

    suffix, packing = suffixes(path)
    if suffix not in _COLUMNAR or packing:
        return None
    try:
        with open(path, "rb") as file:
            return arrow.length(file, suffix)
    except (pa.ArrowException, OSError):
        return None


def file_rows(
    path: str, notes: list[str], read: tuple[int, int] = (0, 0), wanted: np.ndarray | None = None
) -> Iterator[Row | BadRow]:
    """The rows of an existing file. What it turned out to be is added to ``notes`` while they are taken.

    ``read``: how many rows were read before, which are passed over, and the line of the last of them. ``wanted``
    [rows], of a file with a known length alone: the only rows to take, counted from 0 and in order.

    Raises InputError, at once for a file of no known kind, else while rows are taken; NoRows for a file without one.
    """
    suffix, packing = suffixes(path)
    if packing == ".zip":
        suffix = os.path.splitext(zip_member(path, SUFFIXES).lower())[1]
    if suffix not in SUFFIXES:
        text = f"use {', '.join(SUFFIXES)}, each also {', '.join(PACKINGS)}"
        raise InputError(f"{path}: is not a kind of file that can be read; {text}")
    return _read(path, ".jsonl" if suffix == ".ndjson" else suffix, packing, notes, read, wanted)


def _read(
    path: str, suffix: str, packing: str, notes: list[str], read: tuple[int, int], wanted: np.ndarray | None
) -> Iterator[Row | BadRow]:
    line = read[1]
    some = read[0] > 0 or wanted is not None
    try:
        with closing(open_bytes(path, packing, SUFFIXES)) as stream:
            _refuse_other_data(stream, path, suffix)
            for row in _before_damage(_parsed(stream, path, suffix, notes, read, wanted), stream):
                some, line = True, row.line
                yield row
            if damage := _damage(stream):
                raise unpacking_error(path, packing, line, damage)
    except DAMAGED as error:
        raise unpacking_error(path, packing, line, error) from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except MemoryError:
        raise InputError(
            f"{path}: does not fit into memory; write it as JSON lines, which are read one by one"
        ) from None
    if not some:
        raise NoRows(f"{path}: 0 rows; the file is empty")


def _before_damage(rows: Iterator[Row | BadRow], stream: io.BufferedReader) -> Iterator[Row | BadRow]:
    """The rows, but for what is left of one in which packed data is cut short or damaged."""
    last: Row | BadRow | None = None
    try:
        for row in rows:
            if last is not None:
                yield last
            last = row if _damage(stream) else None
            if last is None:
                yield row
        return
    except InputError:  # of what is left of a row
        if not _damage(stream):
            raise
    if last is not None:
        yield last


def _damage(stream: io.BufferedReader) -> Exception | None:
    return stream.damage if isinstance(stream, Unpacked) else None


def _refuse_other_data(stream: io.BufferedReader, path: str, suffix: str) -> None:
    start = stream.peek(8)[:8]
    if suffix in _COLUMNAR:
        return
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path}:1: is UTF-16; save the file as UTF-8")
    refuse_packed(start, path)


def _parsed(
    stream: io.BufferedReader,
    path: str,
    suffix: str,
    notes: list[str],
    read: tuple[int, int],
    wanted: np.ndarray | None,
) -> Iterator[Row | BadRow]:
    binary = cast(BinaryIO, stream)
    if suffix in _COLUMNAR:
        seekable = binary if isinstance(stream.raw, io.FileIO) else io.BytesIO(stream.read())
        return (parquet_rows if suffix == ".parquet" else arrow_rows)(seekable, path, read[0], wanted)
    if suffix in (".csv", ".tsv"):
        return islice(delimited_rows(binary, path, "\t" if suffix == ".tsv" else ",", notes), read[0], None)
    if suffix == ".txt":
        return islice(_document(stream, notes), read[0], None)
    return json_rows(binary, path, suffix, notes, read)


def _document(stream: io.BufferedReader, notes: list[str]) -> Iterator[Row | BadRow]:
    """A text file, which is one document."""
    raw = stream.read()
    try:
        text = decode(raw.removeprefix(b"\xef\xbb\xbf"), 1)
        if "\0" in text:
            raise BadRow("NUL byte", "holds a NUL byte; text holds none", text.count("\n", 0, text.index("\0")) + 1)
    except BadRow as bad:
        yield bad
        return
    if text.strip():
        notes.append("each .txt file is one text")
        yield Row(1, {"text": text})
