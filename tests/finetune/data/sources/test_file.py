"""Files that cannot be read are named, with a fix."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_kinds import Read, arrow, empty_parquet

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", b'[{"a": 1},\n {"a": }]', ":2: not JSON (expecting value at column 8)"),
        ("a.json", b'[{"a": 1}\n {"a": 2}]', ":2: not JSON (a comma or ] is expected here)"),
        ("a.json", b'[{"a": 1}]\n[{"a": 2}]', ":2: not JSON (more follows after the end"),
        ("a.json", b'{"x": {"a": 1},\n "y": {"a"', ":2: not JSON"),
        ("a.json", b'[{"a": "caf\xe9"}]', ":1: byte 0xe9 at column 12 is not UTF-8"),
        ("a.json", b"[" * 200_000, ": nested more than 64 deep"),
        ("a.jsonl", b"", ": 0 rows; the file is empty"),
        ("a.jsonl", b"\n \n", ": 0 rows; the file is empty"),
        ("a.csv", b"\n\n", ": 0 rows; the file is empty"),
        ("a.json", b"[]", ":1: 0 rows; the list is empty"),
        ("a.csv", b"a,b\n", ": 0 rows; only a header"),
        ("a.tsv", b"\xef\xbb\xbfa\tb\r\n\r\n", ": 0 rows; only a header"),
        ("a.parquet", empty_parquet(), ": 0 rows; only column names"),
        ("a.csv", b"a|b\n1|2\n", ":1: the header is one column, 'a|b'; separate the columns by commas"),
        ("a.csv", b"a;b\n1;2\n", ":1: the header is one column, 'a;b'; separate the columns by commas"),
        ("a.csv", b"a\tb\n1\t2\n", "; name the file .tsv"),
        ("a.tsv", b"a,b\n1,2\n", ":1: the header is one column, 'a,b'; name the file .csv"),
        ("a.csv", b"a,b\r1,2\r", ":1: cannot be read as a row (a carriage return alone ends no line"),
        ("a.csv", b"a,,b\n1,2,3\n", ":1: column 2 has no name"),
        ("a.csv", b"a,b,a\n1,2,3\n", ":1: column 'a' is there twice"),
        ("a.csv", b"caf\xe9,b\n1,2\n", ":1: byte 0xe9 at column 4 is not UTF-8"),
        ("a.jsonl", b"question,answer\nx,y\n", ":1: looks like CSV (question,answer); name the file .csv"),
        ("a.jsonl", b"question\tanswer\nx\ty\n", ":1: looks like TSV"),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), ":1: is UTF-16"),
        ("a.jsonl", gzip.compress(b'{"a": 1}\n', mtime=0), ":1: is gzip data; name the file a.jsonl.gz"),
        ("a.jsonl.gz", b'{"a": 1}\n', ": the gz data is damaged"),
        ("a.jsonl.bz2", b'{"a": 1}\n', ": the bz2 data is damaged"),
        ("a.parquet", b"no table", ": not a Parquet file that can be read"),
        ("a.jsonl.xz", b'{"a": 1}\n', ": the xz data is damaged"),
        ("a.jsonl.zst", b'{"a": 1}\n', ": the zst data is damaged"),
        ("a.arrow", b"no table", ": not an Arrow file that can be read"),
        ("a.arrow", arrow()[:-200], ": not an Arrow file that can be read"),
        ("a.csv", b",a,,b\n0,1,2,3\n", ":1: column 3 has no name"),
        ("a.csv", b",\n0,1\n", ":1: column 2 has no name"),
        ("a.md", b"hello", ": is not a kind of file that can be read; use .jsonl"),
    ],
)
def test_a_file_that_cannot_be_read(name: str, content: bytes, says: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        rows_of(path)
    assert says in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value) and error.value.status == 2


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(InputError, match=r"trian\.jsonl: no such file; did you mean .*train\.jsonl\?"):
        open_source(Source(path=str(tmp_path / "trian.jsonl")))
    with pytest.raises(InputError, match=r"there is no folder .*nowhere either"):
        open_source(Source(path=str(tmp_path / "nowhere" / "x.jsonl")))


def test_a_file_that_may_not_be_read(tmp_path: Path, rows_of: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Permission denied\)"):
        rows_of(path)


@pytest.mark.parametrize("write", ["parquet", "arrow"])
def test_two_columns_of_one_name(tmp_path: Path, write: str) -> None:
    """One of them would be lost; so would a field of an object."""
    a, b = pa.array(["a"]), pa.array(["b"])
    inner = pa.StructArray.from_arrays([a, b, b], ["x", "y", "y"])
    lists = pa.ListArray.from_arrays([0, 1], inner)
    for table, named in (
        (pa.Table.from_arrays([a, a, b], ["prompt", "completion", "completion"]), "completion"),
        (pa.table({"prompt": a, "messages": inner}), "messages.y"),
        (pa.table({"prompt": a, "messages": lists}), "messages.y"),
    ):
        path = tmp_path / f"a.{write}"
        if write == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_stream(str(path), table.schema) as out:
                out.write_table(table)
        with pytest.raises(InputError, match=rf"column '{named}' is there twice; give each column its own name$"):
            list(open_source(Source(path=str(path))).rows)
