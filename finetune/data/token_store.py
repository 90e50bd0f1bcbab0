"""Sources as tokens on disk, with a few numbers for each row in memory."""

from __future__ import annotations

import errno
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.drawn_rows import Draw
from hybrid_ft.finetune.data.encoding_workers import EncodingWorkers
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.source_rows import ASKED, OPPOSITE, WHOLE, SourceRows
from hybrid_ft.finetune.data.way import Made, Tokens, Way

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source


Watched = Callable[[Iterator[Any], SourceCounts], Iterator[Any]]


@dataclass
class SourceTokens:
    """The usable rows of one source: Arrow batches in ``file``, and ``numbers`` of each, [rows] by name."""

    counts: SourceCounts
    file: Path
    numbers: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.numbers.get(ASKED, ()))


class TokenStore:
    """The usable rows of some sources, numbered from 0 in the order of the sources."""

    def __init__(self, parts: Sequence[SourceTokens]) -> None:
        self._parts = parts
        self.sources = [part.counts for part in parts]

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def sizes(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One of the numbers of these rows, [rows]."""
        return self._all(name, np.int64)[rows]

    def trained(self, rows: np.ndarray) -> np.ndarray:
        """Trained tokens of these rows, of a pair those of both answers, [rows]."""
        kept = {name for part in self._parts for name in part.numbers}
        named = [name for name in ("trained", "chosen", "rejected", "completion") if name in kept]
        return sum((self.sizes(name, rows) for name in named), start=np.zeros(len(rows), dtype=np.int64))

    @property
    def source(self) -> np.ndarray:
        """Which source each row is from, [all rows]."""
        return np.repeat(np.arange(len(self._parts), dtype=np.int64), [len(part) for part in self._parts])

    @property
    def prompts(self) -> np.ndarray:
        """Hashes of what the rows ask, [all rows]."""
        return self._all(ASKED, np.uint64)

    @property
    def texts(self) -> np.ndarray:
        """Hashes of whole rows, [all rows]."""
        return self._all(WHOLE, np.uint64)

    @property
    def opposites(self) -> np.ndarray:
        """Hashes of what says the contrary of each, [all rows]; of pairs alone."""
        return self._all(OPPOSITE, np.uint64)

    def dataset(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Dataset:
        """These rows, read from the files as they are needed. ``columns``: those wanted, None for all."""
        files = [part.file for part in self._parts if len(part)] or [self._parts[0].file]
        dataset = concatenate_datasets([Dataset.from_file(str(file)) for file in files]).select(rows)
        return dataset if columns is None else dataset.select_columns(list(columns))

    def _all(self, name: str, dtype: type) -> np.ndarray:
        found = [part.numbers[name] for part in self._parts if name in part.numbers]
        return np.concatenate([np.empty(0, dtype), *found])


def tokenize_sources(
    sources: Sequence[Source], way: Way[Made, Tokens], file: Path, *, held_out: bool = True
) -> TokenStore:
    """Read and encode all rows of ``sources`` into files beside ``file``. ``held_out``: as ``file_schema``.

    Raises InputError for a row that stops the run: the first one, with how many there are.
    """
    schema = file_schema(way, held_out)
    names = [file.with_name(f"{file.stem}-{number}{file.suffix}") for number in range(len(sources))]
    with room_for(file.parent), EncodingWorkers(way, schema) as workers:
        return TokenStore([tokenize_source(*pair, way, schema, workers) for pair in zip(sources, names, strict=True)])


def file_schema(way: Way[Made, Tokens], held_out: bool) -> pa.Schema:
    """The columns of the file. ``held_out``: also those that only held-out rows need."""
    return way.schema if held_out else pa.schema([way.schema.field(name) for name in way.trained_columns])


def tokenize_source(
    source: Source,
    file: Path,
    way: Way[Made, Tokens],
    schema: pa.Schema,
    workers: EncodingWorkers[Made, Tokens],
    watched: Watched = lambda rows, counts: rows,
    draw: Draw | None = None,
) -> SourceTokens:
    """Read and encode the rows of a source, all or those of a ``draw``, into ``file``; ``watched`` sees them come.

    Raises InputError for a row that stops the run: the first one, with how many there are; OSError where
    ``file`` cannot be written.
    """
    counts = SourceCounts(source.path)
    numbers: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for wanted in [None] if draw is None else draw.rounds(source, counts):
            notes, ignored = counts.notes, counts.ignored
            rows = watched(way.convert(source, counts, wanted), counts)
            for batch in SourceRows(counts, way, workers.in_order).batches(rows):
                writer.write_batch(batch.table)
                for name, found in batch.numbers.items():
                    if name not in numbers:
                        numbers[name] = array(found.typecode)
                    numbers[name].extend(found)
            counts.notes = list(dict.fromkeys([*notes, *counts.notes]))
            counts.ignored = list(dict.fromkeys([*ignored, *counts.ignored]))
    return SourceTokens(counts, file, {name: np.array(found) for name, found in numbers.items()})


@contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Turn a disk that has no room for tokens into an InputError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            text = f"{folder}: cannot hold the tokens ({error.strerror}); point TMPDIR at a folder with room"
            raise InputError(text, STORAGE) from None
        raise
