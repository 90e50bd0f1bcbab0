"""Rows of .parquet and .arrow files.

A column of objects has every key in every row, null where the row had none. Classes that datasets has named are known
by number and name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

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


def parquet_rows(file: BinaryIO, name: str, read: int = 0) -> Iterator[Row | BadRow]:
    """Rows of a Parquet file, numbered from 1, but the first ``read``."""
    return _rows(lambda: _row_groups(file, read), name, "Parquet", read)


def arrow_rows(file: BinaryIO, name: str, read: int = 0) -> Iterator[Row | BadRow]:
    """Rows of an Arrow file, a stream as ``datasets`` writes it or with a table of contents at its end; without the
    first ``read``."""
    return _rows(lambda: (0, _slices(file)), name, "Arrow", read)


def _row_groups(file: BinaryIO, read: int) -> tuple[int, Iterator[pa.RecordBatch]]:
    """The batches of the row groups that hold more than the first ``read`` rows, and the rows before them."""
    import pyarrow.parquet as pq

    whole = pq.ParquetFile(file)
    before, group = 0, 0
    while group < whole.num_row_groups and before + (rows := whole.metadata.row_group(group).num_rows) <= read:
        before, group = before + rows, group + 1
    return before, whole.iter_batches(_ROWS, row_groups=range(group, whole.num_row_groups))


def _slices(file: BinaryIO) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        whole = pa.ipc.open_file(file)
        batches = (whole.get_batch(number) for number in range(whole.num_record_batches))
    else:
        batches = iter(pa.ipc.open_stream(file))
    for batch in batches:
        batch.validate(full=True)  # offsets of a damaged file point anywhere in memory
        for start in range(0, batch.num_rows, _ROWS):
            yield batch.slice(start, _ROWS)


def _rows(
    open_batches: Callable[[], tuple[int, Iterator[pa.RecordBatch]]], name: str, kind: str, read: int
) -> Iterator[Row | BadRow]:
    import pyarrow as pa

    number = 0
    try:
        number, batches = open_batches()
        while True:
            with limited(_SECONDS, _MEMORY):
                batch = next(batches, None)
                if batch is not None and number < read:
                    passed = min(read - number, batch.num_rows)
                    number, batch = number + passed, batch.slice(passed)
                if batch is not None and (twice := _twice(batch.schema)) is not None:
                    raise InputError(f"{name}: column {short(twice)!r} is there twice; give each column its own name")
                rows = batch.to_pylist() if batch is not None else []
            if batch is None:
                break
            decoders = naming(features_in(batch.schema.metadata))
            decoders |= {field.name: decode for field in batch.schema if (decode := _decoder(field.type))}
            for values in rows:
                number += 1
                try:
                    decoded = {
                        column: decode(values[column]) for column, decode in decoders.items() if column in values
                    }
                    yield Row(number, values | decoded)
                except BadRow as bad:
                    bad.line = number
                    yield bad
        if not number:
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
