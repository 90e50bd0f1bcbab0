"""The rows that a recipe trains on, as one parquet file."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.way import WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset

    from hybrid_ft.finetune.data.prepare import Prepared
    from hybrid_ft.finetune.recipe.schema import Recipe

_ROWS = 64  # read at a time
_GROUP = 64 * 2**20  # bytes of a row group, about; what is held in memory


def check_out(out: Path, recipe: Recipe) -> None:
    """Raise InputError for a file that cannot be written, or that the recipe reads."""
    if out.suffix != ".parquet":
        raise InputError(f"--out: {out}: must be a name in .parquet; rows are written in no other form")
    if out.is_dir():
        raise InputError(f"--out: {out}: is a folder; name a file in it")
    folder = out.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--out: {out}: its folder does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out: {out}: its folder cannot be written to; name another")
    for source in (*recipe.data.sources, *recipe.data.eval.sources):
        if _is_part_of(Path(os.path.realpath(out)), source.path):
            raise InputError(f"--out: {out}: the recipe reads {source.path}; write to another place")


def _is_part_of(file: Path, path: str) -> bool:
    """Whether a source's path, a file's, a folder's or a pattern, takes the file."""
    real = Path(os.path.realpath(path))
    if not os.path.exists(path) and glob.has_magic(path):
        pattern = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        deep = "**" in pattern or len(Path(pattern).parts) == len(file.parts)  # fnmatch's * also takes folders
        return deep and fnmatch.fnmatch(str(file), pattern)
    return file == real or (real.is_dir() and real in file.parents)


def write_rows(prepared: Prepared, file: Path) -> int:
    """Write what would be trained on, and what is held out, and return how many rows that is.

    Columns: ``split`` (``train``, ``held_out``), ``origin`` (``file:line``) and the ids. Supervised: ``input_ids``,
    ``labels`` (-100: not trained) and ``weights``, of each token in the loss, 0 where it is not trained. Pairs:
    ``prompt_ids``, ``chosen_ids``, ``rejected_ids``. Judged answers: ``prompt_ids``, ``completion_ids``, ``label``
    (good: true). Rows are in the order of the sources, each as often as the mix has it. Holds a row group in memory,
    about 64 MB and 64 rows more. Raises InputError, status 5, where the disk has no room.
    """
    splits = [("train", prepared.train), *([("held_out", prepared.eval)] if prepared.eval is not None else [])]
    return write_tables(file, (table for split, rows in splits for table in tables(split, rows, names_of(prepared))))


def names_of(prepared: Prepared) -> list[str]:
    """The columns of the file."""
    return ["split", "origin", *(name for name in prepared.train.column_names if name != "origin")]


def tables(split: str, rows: Dataset, names: list[str]) -> Iterator[pa.Table]:
    """The rows of a split for the file, some at a time."""
    kept = rows.select_columns([name for name in names if name != "split"]).with_format("arrow")
    for table in kept.iter(batch_size=_ROWS):
        yield marked(split, table, names)


def marked(split: str, table: pa.Table, names: list[str]) -> pa.Table:
    """Rows as they lie in the store, for the file: their split said, and a weight for every token."""
    if "weights" in names:
        at = table.column_names.index("weights")
        table = table.set_column(at, "weights", _whole_weights(table))
    return table.append_column("split", pa.array([split] * len(table), pa.string())).select(names)


def write_tables(file: Path, parts: Iterable[pa.Table]) -> int:
    """Write tables of one schema as row groups, and return how many rows they have. Raises as ``write_rows``."""
    rows = 0
    try:
        writer: pq.ParquetWriter | None = None
        try:
            for group in _groups(parts):
                writer = writer or pq.ParquetWriter(file, group.schema, compression="zstd")
                writer.write_table(group)
                rows += len(group)
        finally:
            if writer is not None:
                writer.close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{file.parent}: cannot hold the rows ({error.strerror}); make room", STORAGE) from None
        raise
    return rows


def _groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    held: list[pa.Table] = []
    for table in parts:
        held.append(table)
        if sum(one.nbytes for one in held) >= _GROUP:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _whole_weights(table: pa.Table) -> pa.Array:
    """A weight for every token, where the store has none for rows in which all weights are 1."""
    labels, weights = (table[name].combine_chunks() for name in ("labels", "weights"))
    values = (labels.flatten().to_numpy() != -100).astype(np.float32)
    sizes = labels.value_lengths().to_numpy()
    ends = np.cumsum(sizes)
    for row in np.flatnonzero(weights.value_lengths().to_numpy()):
        values[ends[row] - sizes[row] : ends[row]] *= weights[row].values.to_numpy()
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.array(values), type=WEIGHTS)
