"""Rows of local files, of folders, and of datasets of the Hugging Face hub."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.sources.class_names import naming
from hybrid_ft.finetune.data.sources.file import file_rows, is_data_file
from hybrid_ft.finetune.data.sources.folder import Folder, describes_folder, read_folder
from hybrid_ft.finetune.data.sources.hub import hub_file, load_from_hub
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


def open_source(source: Source) -> Opened:
    """Open a recipe's source.

    Raises InputError, at once or while rows are taken, for what cannot be opened or read to its end: status 2 for a
    file, 3 where the hub cannot be reached.
    """
    folder = folder_of(source)
    return _open_hub(source) if folder is None else _open_splits(source, folder)


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


def _open_splits(source: Source, folder: Folder) -> Opened:
    splits, notes = folder.splits, list(folder.notes)
    name = source.path if source.split is None else f"{source.path}[{source.split}]"
    parts = _parts(source, splits, lambda one: sum(1 for _ in _rows(splits[one], [])))
    read = {part.split for part in parts}
    files = sum(len(splits[one]) for one in read)
    if files > 1 or len(splits) > 1:
        notes.append(f"{files} file{'s' * (files != 1)} of {' and '.join(sorted(read))}")
    if left := [one for one in splits if one not in read]:
        notes.append(f"splits not read: {', '.join(left)}")
    opened = Opened(name, iter(()), notes, [file for one in splits if one in read for file in splits[one]])
    opened.rows = _sliced(parts, splits, opened)
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
        for row in itertools.islice(_rows(splits[part.split], opened.notes), part.start, part.stop):
            taken += 1
            yield row
        if part.stop is not None and taken < part.stop - part.start:
            opened.notes.append(f"{part.split}[{part.start}:{part.stop}] holds only {taken:,}")
        some = some or bool(taken)
    if not some:
        raise NoRows(f"{opened.name}: 0 rows; the split, or this part of it, is empty")


def _rows(files: list[str], notes: list[str]) -> Rows:
    """The rows of several files one after another, each with its file."""
    empty = 0
    for file in files:
        found: list[str] = []
        try:
            for row in file_rows(file, found):
                _add_new(found, notes)
                row.file = file
                yield row
            _add_new(found, notes)
        except NoRows:
            if len(files) == 1:
                raise
            empty += 1
    if empty:
        notes.append(f"{empty} file{'s' * (empty != 1)} without a row")


def _add_new(found: list[str], notes: list[str]) -> None:
    if found:
        notes += [note for note in found if note not in notes]
        found.clear()


def _open_hub(source: Source) -> Opened:
    name = f"{source.path}[{source.split or 'train'}]"
    return Opened(name, _hub_rows(source, name), files=[name])


def _hub_rows(source: Source, name: str) -> Iterator[Row]:
    dataset = load_from_hub(source, name, nearest_file(source.path))
    if not len(dataset):
        raise InputError(f"{name}: 0 rows")
    named = naming(dataset.features.to_dict())
    for number, values in enumerate(dataset):
        yield Row(number, values | {column: name(values[column]) for column, name in named.items()})
