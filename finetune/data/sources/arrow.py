"""Rows of .parquet and .arrow files.

A column of objects has every key in every row, null where the row had none. Classes that datasets has named are known
by number and name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from hybrid_ft.errors import InputError, short
from hybrid_ft.finetune.data.limits import TookTooLong, limited
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.class_names import features_in, naming
from hybrid_ft.finetune.data.sources.json_rows import MAX_LINE_BYTES
from hybrid_ft.finetune.data.sources.rows import BadRow, NoRows, Row

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS = 256  # decoded at a time
# bytes that decoding them may take. A column says once what a million rows repeat: 1 MB of file may be a
# terabyte of rows.
_MEMORY = 4 * 2**30
_SECONDS = 60.0


def parquet_rows(file: BinaryIO, name: str, read: int = 0, wanted: np.ndarray | None = None) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file, numbered from 1, but the first ``read``. ``wanted`` [rows]: the only ones that are taken,
    counted from 0 and in order; row groups without one are not read."""
    return _rows(lambda: _row_groups(file, read, wanted), name, "Parquet", read, wanted)


def arrow_rows(file: BinaryIO, name: str, read: int = 0, wanted: np.ndarray | None = None) -> Iterator[Row | BadRow]:
    """Rows of an Arrow file, a stream as ``datasets`` writes it or with a table of contents at its end; ``read`` and
    ``wanted`` as above."""
    return _rows(lambda: _slices(file, wanted), name, "Arrow", read, wanted)


def length(file: BinaryIO, suffix: str) -> int:
    """The rows of a ``.parquet`` or ``.arrow`` file, none of which is decoded. Raises what pyarrow raises."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(file).metadata.num_rows
    return sum(batch.num_rows for batch in _batches(file))


def _holds(wanted: np.ndarray | None, before: int, rows: int) -> bool:
    """Whether any is wanted of so many rows behind those ``before``."""
    return wanted is None or bool(np.diff(np.searchsorted(wanted, (before, before + rows)))[0])


def _row_groups(file: BinaryIO, read: int, wanted: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The batches of the row groups that hold what is to be read, each with the number of rows before it."""
    import pyarrow.parquet as pq

    whole = pq.ParquetFile(file)
    before = 0
    for group in range(whole.num_row_groups):
        rows = whole.metadata.row_group(group).num_rows
        if before + rows > read and _holds(wanted, before, rows):
            at = before
            for batch in whole.iter_batches(_ROWS, row_groups=[group]):
                yield at, batch
                at += batch.num_rows
        before += rows


def _batches(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        whole = pa.ipc.open_file(file)
        return (whole.get_batch(number) for number in range(whole.num_record_batches))
    return iter(pa.ipc.open_stream(file))


def _slices(file: BinaryIO, wanted: np.ndarray | None) -> Iterator[tuple[int, pa.RecordBatch]]:
    before = 0
    for batch in _batches(file):
        if _holds(wanted, before, batch.num_rows):
            batch.validate(full=True)  # offsets of a damaged file point anywhere in memory
            for start in range(0, batch.num_rows, _ROWS):
                yield before + start, batch.slice(start, _ROWS)
        before += batch.num_rows


def _taken(before: int, batch: pa.RecordBatch, read: int, wanted: np.ndarray | None) -> np.ndarray:
    """Which rows of a batch are to be read, counted from its first."""
    if wanted is None:
        return np.arange(max(read - before, 0), batch.num_rows)
    first, last = np.searchsorted(wanted, (max(before, read), before + batch.num_rows))
    return wanted[first:last] - before


def _rows(
    open_batches: Callable[[], Iterator[tuple[int, pa.RecordBatch]]],
    name: str,
    kind: str,
    read: int,
    wanted: np.ndarray | None,
) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    number, some = 0, read > 0 or wanted is not None
    try:
        batches = open_batches()
        while True:
            with limited(_SECONDS, _MEMORY):
                before, batch = next(batches, (0, None))
                if batch is None:
                    break
                if (twice := _twice(batch.schema)) is not None:
                    raise InputError(f"{name}: column {short(twice)!r} is there twice; give each column its own name")
                taken = _taken(before, batch, read, wanted)
                rows = (batch if len(taken) == batch.num_rows else batch.take(pa.array(taken))).to_pylist()
            decoders = naming(features_in(batch.schema.metadata))
            decoders |= {field.name: decode for field in batch.schema if (decode := _decoder(field.type))}
            for at, values in zip(taken.tolist(), rows, strict=True):
                number, some = before + at + 1, True
                try:
                    decoded = {
                        column: decode(values[column]) for column, decode in decoders.items() if column in values
                    }
                    yield Row(number, values | decoded)
                except BadRow as bad:
                    bad.line = number
                    yield bad
        if not some:
            raise NoRows(f"{name}: 0 rows; only column names")
    except (MemoryError, TookTooLong):
        size = f"{_ROWS} rows unpack to more than {_MEMORY // 2**30} GB"
        raise InputError(f"{name}: after row {number}, {size}; a row is at most {MAX_LINE_BYTES // 2**20} MB") from None
    except (pa.ArrowException, OSError) as error:
        reason = short(str(error).splitlines()[0], 160) if str(error) else type(error).__name__
        raise InputError(
            f"{name}: not {'an' if kind == 'Arrow' else 'a'} {kind} file that can be read ({reason})"
        ) from None


def _twice(fields: pa.Schema | pa.StructType) -> str | None:
    """The name of two columns, or of two fields of an object in one."""
    import pyarrow as pa

    names = [field.name for field in fields]
    if len(set(names)) < len(names):
        return next(name for name in names if names.count(name) > 1)
    for field in fields:
        kind = field.type
        while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        if pa.types.is_struct(kind) and (twice := _twice(kind)) is not None:
            return f"{field.name}.{twice}"
    return None


def _text_or_bytes(value: Any) -> Any:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def _decoder(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What turns a value of a column into what was meant, where it holds JSON that is marked as such, or text as bytes
    alone, which some writers of Parquet leave it at; else None."""
    import pyarrow as pa

    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return _text_or_bytes
    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: strict_json.parse(value) if isinstance(value, str) else value
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if inner := _decoder(kind.value_type):
            return lambda value: [inner(item) for item in value] if isinstance(value, list) else value
    elif pa.types.is_struct(kind):
        fields = {field.name: decode for field in kind if (decode := _decoder(field.type))}
        if fields:
            return lambda value: (
                {key: fields[key](item) if key in fields else item for key, item in value.items()}
                if isinstance(value, dict)
                else value
            )
    return None
