"""Files and lines that cannot be read: each names its place, and costs itself alone."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_kinds import PACK, Read, arrow, empty_parquet, lines, values

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources import arrow as columnar
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

BAD_LINES = [
    ("unterminated", b'{"a": "x', "not JSON (unterminated string at column 7)"),
    ("single quotes", b"{'a': 1}", "not JSON (expecting property name enclosed in double quotes at column 2)"),
    ("two values", b'{"a": 1} {"a": 2}', "not JSON (extra data at column 10)"),
    ("twice", b'{"a": {"k": 1, "k": 2}}', "key 'k' is given twice"),
    ("nan", b'{"a": NaN}', "NaN is not a JSON number"),
    ("infinity", b'{"a": -Infinity}', "-Infinity is not a JSON number"),
    ("huge float", b'{"a": 1e999}', "number 1e999 is too large"),
    ("huge integer", b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
    ("surrogate", b'{"a": "x\\ud800y"}', "half of a surrogate pair"),
    ("low surrogate", b'{"a": "\\uDC00"}', "half of a surrogate pair"),
    ("latin-1", '{"a": "café"}'.encode("latin-1"), "byte 0xe9 at column 11 is not UTF-8"),
    ("nul", b'{"a": "x\0y"}', "NUL byte at column 9"),
    ("list", b"[1, 2]", "a row is an object of columns, not a list of 2"),
    ("text", b'"hello"', "a row is an object of columns, not 'hello'"),
    ("deep", b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "nested more than 64 deep"),
    ("very deep", b'{"a": ' + b"[" * 200_000 + b"}", "nested more than 64 deep"),
]


@pytest.mark.parametrize(("line", "says"), [case[1:] for case in BAD_LINES], ids=[case[0] for case in BAD_LINES])
def test_a_bad_line_costs_itself(line: bytes, says: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": "first"}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    first, bad, last = rows_of(path)
    assert first.values == {"a": "first"} and last.values == {"a": "\N{GRINNING FACE}"}
    assert isinstance(bad, BadRow) and bad.line == 2 and says in str(bad) and "\n" not in str(bad)


@pytest.mark.parametrize("case", ["twice", "nan", "surrogate", "deep"])
def test_a_bad_element_of_an_array_costs_itself(case: str, tmp_path: Path, rows_of: Read) -> None:
    line, says = next(found[1:] for found in BAD_LINES if found[0] == case)
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": 1},\n' + line + b',\n{"a": 2}]')
    first, bad, last = rows_of(path)
    assert isinstance(bad, BadRow) and bad.line == 2 and says in str(bad)
    assert (first.line, last.line) == (1, 3)


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


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_packed_data_cut_short(suffix: str, tmp_path: Path) -> None:
    import random

    noise = random.Random(0)
    rows = b"".join(b'{"a": "%d"}\n' % noise.getrandbits(256) for _ in range(20_000))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(PACK[suffix](rows)[:-1000])
    read = 0
    with pytest.raises(InputError, match=r"a\.jsonl\.\w+:\d+: .* ends in the middle; the file was cut short") as error:
        for row in open_source(Source(path=str(path))).rows:
            read = row.line
    assert read > 1000 and f":{read}:" in str(error.value)


def test_a_line_without_end(tmp_path: Path, rows_of: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_ft.finetune.data.sources import json_rows

    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": "' + "x" * 5000 + '"}\n{"a": 2}\n')
    rows = rows_of(path)
    assert lines(rows) == [1, 2, 3] and isinstance(rows[1], BadRow) and "longer than" in str(rows[1])
    array = tmp_path / "b.jsonl"
    array.write_text(json.dumps([{"a": "x" * 300}] * 10))
    assert len(values(rows_of(array))) == 10


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"a,b\n1,2\n3,4,5\n6,7\n", 3, "has 3 fields where the header names 2"),
        (b"a,b\n1,2\n3\n6,7\n", 3, "has 1 fields"),
        (b'a,b\n1,2\n"3" x,4\n6,7\n', 3, "cannot be read as a row"),
        (b"a,b\n1,2\ncaf\xe9,4\n6,7\n", 3, "byte 0xe9 at column 4 is not UTF-8"),
        (b"a,b\n1,2\nx\0,4\n6,7\n", 3, "NUL byte at column 2"),
    ],
)
def test_a_bad_table_row_costs_itself(content: bytes, line: int, says: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    first, bad, last = rows_of(path)
    assert (first.line, bad.line, last.line) == (2, line, 4)
    assert isinstance(bad, BadRow) and says in str(bad)
    assert last.values == {"a": "6", "b": "7"}


def test_a_quote_that_is_never_closed(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n"3,4\n5,6\n')
    _, bad = rows_of(path)
    assert bad.line == 3 and "never closed" in str(bad)


def test_a_field_longer_than_the_csv_modules_own_limit(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"a,b\n{'x' * 200_000},2\n")
    assert len(values(rows_of(path))[0]["a"]) == 200_000
    assert csv.field_size_limit() == 131072


def test_nulls_of_columnar_files_are_kept(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.parquet"
    turns = [[{"role": "user", "content": "x", "name": None}], [{"role": "user", "content": None, "name": "n"}]]
    pq.write_table(pa.table({"messages": turns, "other": [None, "x"]}), path)
    assert values(rows_of(path)) == [
        {"messages": turns[0], "other": None},
        {"messages": turns[1], "other": "x"},
    ]


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


def test_a_line_of_form_feeds_is_a_bad_row_wherever_it_stands(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\x0c\n\n\x0b\n" + b'{"a": 1}\n' + b"\x0c\n")
    assert [(row.line, isinstance(row, BadRow)) for row in rows_of(path)] == [
        (1, True),
        (3, True),
        (4, False),
        (5, True),
    ]
