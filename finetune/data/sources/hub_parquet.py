"""Rows of Parquet files on the hub, fetched by row groups.

They are the rows that the whole download gives, with the same numbers and values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid_ft.errors import ENVIRONMENT, InputError, one_line
from hybrid_ft.finetune.data.sources import hub
from hybrid_ft.finetune.data.sources.slices import Slice, slices

if TYPE_CHECKING:
    import datasets

    from hybrid_ft.finetune.recipe.data_section import Source

_WORTH = 0.5  # share of a split's bytes up to which parts are fetched, and not all of it for the cache
_ROWS = 1000  # decoded at a time
_FOUND: dict[tuple[str | None, ...], HubParquet] = {}
"""What this process has found, so that a sample's rounds do not ask again."""


@dataclass(frozen=True)
class _Group:
    """A row group: its file, its number in there, the rows before it in its split, its rows and bytes."""

    file: str
    number: int
    before: int
    rows: int
    bytes: int


@dataclass(frozen=True)
class HubParquet:
    """What a source takes of a dataset: parts of splits, one after another."""

    features: datasets.Features
    groups: dict[str, list[_Group]]
    parts: list[Slice]

    @property
    def count(self) -> int:
        return sum(len(self._numbers(part)) for part in self.parts)

    def worth_it(self, wanted: np.ndarray | None) -> bool:
        """Whether fetching parts spares more than it costs. ``wanted`` [rows]: the only rows to take, counted from 0;
        None for all."""
        whole = sum(group.bytes for split in {part.split for part in self.parts} for group in self.groups[split])
        touched = {group: None for group, _, _ in self._pieces(wanted)}
        return 0 < sum(group.bytes for group in touched) <= _WORTH * whole

    def rows(self, wanted: np.ndarray | None, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Numbers and values, as ``datasets`` gives them. ``name`` is what a message calls the source. Raises
        InputError, status 3, where the hub cannot be read."""
        import datasets
        import fsspec
        import pyarrow as pa
        import pyarrow.parquet as pq
        from datasets.table import table_cast

        for group, inside, numbers in self._pieces(wanted):
            try:
                with fsspec.open(group.file, "rb") as file:
                    batches = list(pq.ParquetFile(file, pre_buffer=True).iter_batches(_ROWS, row_groups=[group.number]))
            except Exception as error:  # noqa: BLE001 - what is raised depends on the HTTP library under the hub's
                text = f"cannot be read from the hub ({one_line(error, 200)}); the same command tries again"
                raise InputError(f"{name}: {text}", ENVIRONMENT) from None
            table = table_cast(pa.Table.from_batches(batches).take(pa.array(inside)), self.features.arrow_schema)
            yield from zip(numbers.tolist(), datasets.Dataset(table), strict=True)

    def _pieces(self, wanted: np.ndarray | None) -> Iterator[tuple[_Group, np.ndarray, np.ndarray]]:
        """The row groups that hold what is wanted, each with the rows' places in it and their numbers in the source."""
        before = 0
        for part in self.parts:
            of_split = self._numbers(part)
            here = np.arange(len(of_split)) if wanted is None else wanted - before
            here = here[(here >= 0) & (here < len(of_split))]
            places = here + of_split.start
            for group in self.groups[part.split]:
                first, last = np.searchsorted(places, (group.before, group.before + group.rows))
                if first < last:
                    yield group, places[first:last] - group.before, here[first:last] + before
            before += len(of_split)

    def _numbers(self, part: Slice) -> range:
        rows = sum(group.rows for group in self.groups[part.split])
        return range(min(part.start, rows), rows if part.stop is None else min(part.stop, rows))


def parquet_on_hub(source: Source) -> HubParquet | None:
    """A source whose files lie on the hub as Parquet and not yet in the cache; None where that is not so, or where the
    hub does not say. Reads the files' tables of contents."""
    import datasets
    import fsspec
    import pyarrow.parquet as pq
    from datasets.packaged_modules.parquet.parquet import Parquet

    key = (source.path, source.name, source.split, source.revision)
    if key in _FOUND:
        return _FOUND[key]
    if not hub.reachable():
        return None
    try:
        builder = datasets.load_dataset_builder(source.path, source.name, revision=source.revision)
        if not isinstance(builder, Parquet) or os.path.isdir(builder.cache_dir):
            return None
        files = {str(split): list(of_split) for split, of_split in (builder.config.data_files or {}).items()}
        groups: dict[str, list[_Group]] = {}
        features = builder.info.features

        def contents(split: str) -> list[_Group]:
            nonlocal features
            found: list[_Group] = []
            for name in files[split]:
                with fsspec.open(name, "rb") as file:
                    about = pq.ParquetFile(file)
                features = features or datasets.Features.from_arrow_schema(about.schema_arrow)
                for number in range(about.metadata.num_row_groups):
                    before = found[-1].before + found[-1].rows if found else 0
                    one = about.metadata.row_group(number)
                    found.append(_Group(name, number, before, one.num_rows, one.total_byte_size))
            return found

        def rows(split: str) -> int:
            groups[split] = groups.get(split) or contents(split)
            return sum(group.rows for group in groups[split])

        parts = slices(source.split or "train", rows, files)
        for part in parts:
            rows(part.split)
    except Exception:  # noqa: BLE001 - whoever opens the whole of it says what is wrong
        return None
    if not features:
        return None
    _FOUND[key] = HubParquet(features, groups, parts)
    return _FOUND[key]
