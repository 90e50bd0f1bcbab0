"""Rows of every kind of file go on from any row: what is read after a stop is what would have been read."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.data.streaming import raw_rows as module
from hybrid_ft.finetune.data.streaming.raw_rows import raw_rows
from hybrid_ft.finetune.recipe.data_section import Source

ROWS = [{"prompt": f"question {number}", "completion": f"answer\u2028{number}"} for number in range(23)]


def written(folder, kind):
    """Two files of rows, with blank and bad lines where there are lines."""
    for part, rows in enumerate((ROWS[:13], ROWS[13:])):
        file = folder / f"part-{part}.{kind}"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        lines[3:3] = ["", "{not json", '{"prompt": 1}', " "]
        text = "\n".join(lines) + "\n"
        if kind == "jsonl":
            file.write_text(text, encoding="utf-8")
        elif kind == "jsonl.gz":
            file.write_bytes(gzip.compress(text.encode()))
        elif kind == "json":
            file.write_text(json.dumps(rows))
        elif kind == "csv":
            file.write_text("prompt,completion\n" + "".join(f'"a\n{row["prompt"]}",b\n' for row in rows))
        elif kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
        else:
            with pa.ipc.new_stream(str(file), pa.Table.from_pylist(rows).schema) as writer:
                writer.write_table(pa.Table.from_pylist(rows), max_chunksize=5)
    return Source(path=str(folder / f"*.{kind}"))


def told(rows):
    return [(row.file, row.line, row.which, str(row) if isinstance(row, BadRow) else row.values) for row in rows]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet", "arrow"])
def test_goes_on_from_every_row(tmp_path, kind):
    source = written(tmp_path, kind)
    whole = told(open_source(source).rows)
    assert len(whole) == 23 + (4 if "jsonl" in kind else 0)
    reader = raw_rows(source)
    for read in range(len(whole) + 1):
        place = json.loads(json.dumps(reader.place()))
        fresh = raw_rows(source)
        fresh.load(place)
        assert told(fresh.take(100)) == whole[read:], read
        assert told(reader.take(1)) == whole[read : read + 1]
    reader.rewind()
    assert told(reader.take(100)) == whole


def test_a_file_longer_than_the_reader_s_buffer(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(json.dumps({"text": f"{number} " + "x" * (number * 37 % 9000)}) + "\n" for number in range(200))
    )
    whole = told(open_source(Source(path=str(file))).rows)
    for read in (1, 2, 57, 199):
        reader = raw_rows(Source(path=str(file)))
        reader.take(read)
        fresh = raw_rows(Source(path=str(file)))
        fresh.load(reader.place())
        assert told(fresh.take(300)) == whole[read:]


def test_a_dataset_of_the_hub(tmp_path, monkeypatch):
    """datasets' own streaming, from files here: the same rows after a stop."""
    import datasets

    written(tmp_path, "parquet")

    def load(source, name, near, streaming):
        assert streaming
        return datasets.load_dataset("parquet", data_files=str(tmp_path / "*.parquet"), split="train", streaming=True)

    monkeypatch.setattr(module, "load_from_hub", load)
    reader = raw_rows(Source(path="org/name"))
    first = reader.take(9)
    place = json.loads(json.dumps(reader.place()))
    rest = reader.take(100)
    assert [row.values for row in first + rest] == ROWS and [row.line for row in first + rest] == list(range(23))
    fresh = raw_rows(Source(path="org/name"))
    fresh.load(place)
    assert told(fresh.take(100)) == told(rest)


def test_a_file_without_a_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(InputError, match=r"rows\.jsonl: 0 rows; the file is empty"):
        raw_rows(Source(path=str(tmp_path / "rows.jsonl"))).take(1)
