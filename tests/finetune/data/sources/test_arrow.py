"""Columnar files: nulls are kept, and what unpacks to more than memory is refused."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_kinds import Read, values

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources import arrow as columnar


def test_nulls_of_columnar_files_are_kept(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": "x", "name": None}], [{"role": "user", "content": None, "name": "n"}]]
    pq.write_table(pa.table({"messages": turns, "other": [None, "x"]}), path)
    assert values(rows_of(path)) == [
        {"messages": turns[0], "other": None},
        {"messages": turns[1], "other": "x"},
    ]


def test_a_parquet_file_that_unpacks_to_more_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(columnar, "_MEMORY", 2**28)
    path = tmp_path / "a.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * 2**22])
    pq.write_table(pa.table({"prompt": text, "completion": text}), path)
    assert path.stat().st_size < 2**20
    with (
        path.open("rb") as file,
        pytest.raises(InputError, match="after row 0, 256 rows unpack to more than 0 GB; a row is"),
    ):
        list(columnar.parquet_rows(file, "a.parquet"))
