"""Rows of local files, of folders, and of datasets of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.sources.class_names import naming
from hybrid_ft.finetune.data.sources.file import file_rows, is_data_file, known_length
from hybrid_ft.finetune.data.sources.folder import Folder, describes_folder, read_folder
from hybrid_ft.finetune.data.sources.hub import hub_file, load_from_hub
from hybrid_ft.finetune.data.sources.hub_parquet import parquet_on_hub
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row
from hybrid_ft.finetune.data.sources.slices import Slice, slices
from hybrid_ft.finetune.recipe.hub_files import HUB_FILES
from hybrid_ft.finetune.recipe.nearest import nearest_file

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

Rows = Iterator[Row | BadRow]

_MANY = 10**9  # rows, enough for any part of a split to be one


@dataclass
class Opened:
    """A source being read. ``notes`` fills while ``rows`` are taken: what the files turned out to be.

    ``rows``: Row and BadRow; whoever makes pairs of them puts other reasons in the place of rows too. ``files``: what
    the places of its rows begin with.
    """

    name: str
    rows: Iterator[Any]
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def open_source(source: Source, wanted: np.ndarray | None = None) -> Opened:
    """Open a recipe's source. ``wanted`` [rows]: the only rows to take, counted from 0 and in order.

    Raises InputError, at once or while rows are taken, for what cannot be opened or read to its end: status 2 for a
    file, 3 where the hub cannot be reached.
    """
    folder = folder_of(source)
    return _open_hub(source, wanted) if folder is None else _open_splits(source, folder, wanted)


def rows_in(source: Source) -> int:
    """How many rows a source has. Raises InputError as ``open_source``."""
    folder = folder_of(source)
    if folder is None:
        if (in_parts := parquet_on_hub(source)) is not None:
            return in_parts.count
        return len(load_from_hub(source, _hub_name(source), nearest_file(source.path)))
    lengths = {split: _Length(files) for split, files in folder.splits.items()}
    parts = _parts(source, folder.splits, lambda one: lengths[one].rows)
    return sum(max(0, min(part.stop or _MANY, lengths[part.split].rows) - part.start) for part in parts)


class _Length:
    """The rows of a split, counted once and when they are asked for."""

    def __init__(self, files: list[str]) -> None:
        self._files = files

    @cached_property
    def rows(self) -> int:
        known = [known_length(file) for file in self._files]
        if None in known:
            return sum(1 for _ in _rows(self._files, []))
        return sum(length or 0 for length in known)


def folder_of(source: Source) -> Folder | None:
    """The splits of local data, and their files, one file of the hub included, which is fetched; None for a dataset of
    the hub. Raises InputError."""
    path = source.path
    if path.startswith(HUB_FILES):
        path = hub_file(path, source.revision)
    if os.path.isdir(path):
        return read_folder(path, source.name)
    if not os.path.exists(path) and glob.has_magic(path):
        files = sorted(file for file in glob.glob(path, recursive=True) if os.path.isfile(file))
        if not files:
            raise InputError(f"{path}: no file has such a name")
        return Folder({_split_of(files, source.split): files})
    if os.path.exists(path) or _only_a_file(path):
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file{nearest_file(path)}")
        if describes_folder(path):
            raise InputError(
                f"{path}: describes the data set in its folder; name the folder, {os.path.dirname(path) or '.'}"
            )
        return Folder({_split_of([path], source.split): [path]})
    return None


def _only_a_file(path: str) -> bool:
    """Whether a path that does not exist cannot be the name of a hub dataset."""
    parts = path.split("/")
    return len(parts) > 2 or "" in parts or path.startswith((".", "~")) or is_data_file(path)


def _split_of(files: list[str], wanted: str | None) -> str:
    """What split a file or a pattern of files is: the one that is asked for, where all their names
    have it; else train."""
    name = (wanted or "train").partition("[")[0]
    words = [set(os.path.basename(file).lower().replace("-", ".").replace("_", ".").split(".")) for file in files]
    return name if name and all(name.lower() in found for found in words) else "train"


def _open_splits(source: Source, folder: Folder, wanted: np.ndarray | None) -> Opened:
    splits, notes = folder.splits, list(folder.notes)
    name = source.path if source.split is None else f"{source.path}[{source.split}]"
    lengths = {split: _Length(files) for split, files in splits.items()}
    parts = _parts(source, splits, lambda one: lengths[one].rows)
    read = {part.split for part in parts}
    files = sum(len(splits[one]) for one in read)
    if files > 1 or len(splits) > 1:
        notes.append(f"{files} file{'s' * (files != 1)} of {' and '.join(sorted(read))}")
    if left := [one for one in splits if one not in read]:
        notes.append(f"splits not read: {', '.join(left)}")
    opened = Opened(name, iter(()), notes, [file for one in splits if one in read for file in splits[one]])
    if wanted is None:
        opened.rows = _sliced(parts, splits, opened)
    else:
        opened.rows = _picked(parts, splits, lengths, opened, wanted)
    for one in read:  # an unknown kind of file is said at once
        for file in splits[one]:
            file_rows(file, [])
    return opened


def files_read(source: Source, folder: Folder) -> list[str]:
    """The files of the splits that a source reads, which are not opened. Raises InputError."""
    read = {part.split for part in _parts(source, folder.splits, lambda _: _MANY)}
    return [file for split, files in folder.splits.items() if split in read for file in files]


def _parts(source: Source, splits: dict[str, list[str]], count: Callable[[str], int]) -> list[Slice]:
    """What a source takes of each split; ``count``: the rows of one, where that must be known."""
    if source.split is None:
        if "train" not in splits and len(splits) > 1:
            first = next(iter(splits))
            raise InputError(f"{source.path}: has the splits {', '.join(splits)}; choose one: split: {first}")
        return [Slice("train" if "train" in splits else next(iter(splits)))]
    try:
        return slices(source.split, count, splits)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{source.path}: split: got {shown(source.split)}; {error}") from None


def _sliced(parts: Iterable[Slice], splits: dict[str, list[str]], opened: Opened) -> Rows:
    some = False
    for part in parts:
        taken = 0
        for row in _rows(splits[part.split], opened.notes, part.start, part.stop):
            taken += 1
            yield row
        if part.stop is not None and taken < part.stop - part.start:
            opened.notes.append(f"{part.split}[{part.start}:{part.stop}] holds only {taken:,}")
        some = some or bool(taken)
    if not some:
        raise NoRows(f"{opened.name}: 0 rows; the split, or this part of it, is empty")


def _picked(
    parts: list[Slice],
    splits: dict[str, list[str]],
    lengths: dict[str, _Length],
    opened: Opened,
    wanted: np.ndarray,
) -> Rows:
    """The rows that are wanted of those of all parts."""
    before = 0
    for number, part in enumerate(parts, 1):
        # of the last one all that is left is wanted, and no file is read for its number of rows
        ends = _MANY if number == len(parts) else min(part.stop or _MANY, lengths[part.split].rows)
        rows = max(0, ends - part.start)
        here = _within(wanted, before, rows) + part.start
        yield from _rows(splits[part.split], opened.notes, wanted=here)
        before += rows


def _rows(
    files: list[str], notes: list[str], start: int = 0, stop: int | None = None, wanted: np.ndarray | None = None
) -> Rows:
    """The rows of several files one after another, each with its file: from ``start`` to ``stop``, or the
    ``wanted``."""
    chosen = None if wanted is None else set(wanted.tolist())
    last = stop if chosen is None else max(chosen, default=-1) + 1
    if last is not None and last <= start:
        return
    for number, row in _numbered(files, notes, start, wanted):
        if number >= start and (chosen is None or number in chosen):
            yield row
        if number + 1 == last:
            return


def _numbered(
    files: list[str], notes: list[str], start: int, wanted: np.ndarray | None
) -> Iterator[tuple[int, Row | BadRow]]:
    """Rows with their numbers, counted from 0 through all files. Files that say how many they have leave out those
    before ``start`` and those that are not ``wanted``."""
    before = empty = 0
    for file in files:
        rows = known_length(file) if start or wanted is not None else None
        skip = min(max(start - before, 0), rows or 0)
        here = None if rows is None or wanted is None else _within(wanted, before, rows)
        if rows and (skip == rows or (here is not None and not len(here))):
            before += rows
            continue
        number = before + skip
        found: list[str] = []
        try:
            for row in file_rows(file, found, (skip, skip), here):
                _add_new(found, notes)
                row.file = file
                number = number if here is None else before + row.line - 1
                yield number, row
                number += 1
            _add_new(found, notes)
        except NoRows:
            if len(files) == 1:
                raise
            empty += 1
        before = number if rows is None else before + rows
    if empty:
        notes.append(f"{empty} file{'s' * (empty != 1)} without a row")


def _within(wanted: np.ndarray, before: int, rows: int) -> np.ndarray:
    """Those of the ``wanted`` that are among so many rows behind ``before``, counted from the first of these."""
    first, last = np.searchsorted(wanted, (before, before + rows))
    return wanted[first:last] - before


def _add_new(found: list[str], notes: list[str]) -> None:
    if found:
        notes += [note for note in found if note not in notes]
        found.clear()


def _open_hub(source: Source, wanted: np.ndarray | None) -> Opened:
    name = _hub_name(source)
    return Opened(name, _hub_rows(source, name, wanted), files=[name])


def _hub_name(source: Source) -> str:
    return f"{source.path}[{source.split or 'train'}]"


def _hub_rows(source: Source, name: str, wanted: np.ndarray | None) -> Iterator[Row]:
    in_parts = parquet_on_hub(source) if wanted is not None or "[" in (source.split or "") else None
    if in_parts is not None and in_parts.worth_it(wanted):
        named = naming(in_parts.features.to_dict())
        for number, values in in_parts.rows(wanted, name):
            yield Row(number, values | {column: name_of(values[column]) for column, name_of in named.items()})
        return
    dataset = load_from_hub(source, name, nearest_file(source.path))
    if not len(dataset):
        raise InputError(f"{name}: 0 rows")
    named = naming(dataset.features.to_dict())
    numbers = range(len(dataset)) if wanted is None else wanted.tolist()
    rows = dataset if wanted is None else dataset.select(wanted)
    for number, values in zip(numbers, rows, strict=True):
        yield Row(number, values | {column: name(values[column]) for column, name in named.items()})
