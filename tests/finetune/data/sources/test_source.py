"""Reading files: every shape that is known, and a line number for everything that is wrong."""

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_kinds import JSONL, PACK, ROWS, Read, arrow, lines, parquet, table, values

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.report.count import Count, split_origin
from hybrid_ft.finetune.data.sources.rows import origin
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

FILES = {
    "rows.jsonl": JSONL,
    "rows.ndjson": JSONL,
    "lines.json": JSONL,
    "array.json": json.dumps(ROWS).encode(),
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "array.jsonl": json.dumps(ROWS).encode(),
    "pretty.jsonl": json.dumps(ROWS, indent=1).encode(),
    "keyed.json": json.dumps({f"id{i}": row for i, row in enumerate(ROWS)}).encode(),
    "keyed_pretty.json": json.dumps({f"id{i}": row for i, row in enumerate(ROWS)}, indent=1).encode(),
    "rows.csv": table(","),
    "rows.tsv": table("\t"),
    "rows.parquet": parquet(),
    "rows.arrow": arrow(),
    "rows_with_contents.arrow": arrow(pa.ipc.new_file),
}


def test_text_that_a_table_has_as_bytes(tmp_path: Path, rows_of: Read) -> None:
    """As some writers of Parquet leave it; other bytes stay what they are."""
    path = tmp_path / "rows.parquet"
    turns = [[{"role": b"user", "content": "\u00e9?".encode()}]]
    columns = {
        "prompt": [b"Red?"],
        "messages": turns,
        "mark": pa.array([b"x"], pa.large_binary()),
        "hash": [b"\xff\xfe"],
    }
    pq.write_table(pa.table(columns), path)
    wanted = {"prompt": "Red?", "messages": [{"role": "user", "content": "\u00e9?"}], "mark": "x", "hash": b"\xff\xfe"}
    assert values(rows_of(path)) == [wanted]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", FILES)
def test_every_form_of_file(name: str, packing: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACK[packing](FILES[name]))
    assert values(rows_of(path)) == ROWS


@pytest.mark.parametrize("name", FILES)
def test_a_zip_archive_of_one_file(name: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"folder/{name}", FILES[name])
        archive.writestr(f"__MACOSX/._{name}", b"x")
        archive.writestr("folder/README.md", b"x")
    assert values(rows_of(path)) == ROWS


def test_zip_archives_that_are_refused(tmp_path: Path, rows_of: Read) -> None:
    for names, says in [
        (["train.csv", "test.csv"], r"a\.zip: holds 2 data files \(train\.csv, test\.csv\); must hold one: unpack it"),
        (["a.md"], r"holds 0 data files \(a\.md\)"),
        ([], r"holds 0 data files \(nothing\)"),
    ]:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"a\n1\n")
        with pytest.raises(InputError, match=says):
            rows_of(tmp_path / "a.zip")
    raw = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(raw[:-9])
    with pytest.raises(InputError, match=r"a\.zip: not a zip archive that can be read"):
        rows_of(tmp_path / "a.zip")


def test_a_text_file_is_one_text(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfOne.\r\n\nTwo.\n")
    assert values(rows_of(path)) == [{"text": "One.\r\n\nTwo.\n"}]
    path.write_bytes(b"One.\n\0")
    assert [(str(bad), bad.line) for bad in rows_of(path)] == [("holds a NUL byte; text holds none", 2)]
    path.write_bytes(b" \n")
    with pytest.raises(InputError, match="0 rows; the file is empty"):
        rows_of(path)


def test_a_nameless_first_column_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",a,b\n0,x,y\n1,z,w\n")
    opened = open_source(Source(path=str(path)))
    assert values(list(opened.rows)) == [{"a": "x", "b": "y"}, {"a": "z", "b": "w"}]
    assert opened.notes == ["the first column has no name, not read"]


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.json", "array.json", "rows.csv", "keyed.json"])
def test_byte_order_mark(name: str, tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + FILES[name])
    assert values(rows_of(path)) == ROWS


def test_where_rows_begin(tmp_path: Path, rows_of: Read) -> None:
    for name, content, expected in [
        ("a.jsonl", '\n{"a": 1}\n\n{"a": 2}\r\n', [2, 4]),
        ("lines.json", '\n{"a": 1}\n\n\n{"a": 2}\n', [2, 5]),
        ("a.json", '[\n\n{"a":\n1},\n{"a": 2}\n]\n', [3, 5]),
        ("k.json", '{\n"x": {"a": 1},\n"y":\n {"a": 2}}', [2, 4]),
        ("a.csv", 'a,b\n"1\n1",2\n\n3,4\n', [2, 5]),
        ("one.json", '{\n "a": "x"\n}', [1]),
    ]:
        (tmp_path / name).write_text(content)
        assert lines(rows_of(tmp_path / name)) == expected, name


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ('[{"a": 1}, {"a": 2},\n{"a": 3}, 4, {"a": NaN},\n {"a": 6}]', ["1 (row 1)", "1 (row 2)", "2 (row 3)", "2 (row 4)", "2 (row 5)", "3"]),
        ('{"x": {"a": 1}, "y:1\\n": {"a": 2},\n"z": {"a": 3}}', ['1 (key "x")', '1 (key "y:1\\n")', "2"]),
        ('[{"a":\n1}, {"a":\n2}]', ["1", "2"]),
        ('[{"a": 1}]', ["1"]),
        ('{"x": {"a": 1}}', ["1"]),
    ],
)  # fmt: skip
def test_rows_that_begin_on_one_line_are_told_apart(
    content: str, places: list[str], tmp_path: Path, rows_of: Read
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    found = [origin("a.json", row) for row in rows_of(path)]
    assert found == [f"{path}:{place}" for place in places]
    assert [split_origin(one) for one in found] == [(str(path), place) for place in places]


def test_notes_say_what_a_file_is(tmp_path: Path) -> None:
    for name, note in [
        ("array.jsonl", "a JSON array in a .jsonl file"),
        ("lines.json", "JSON lines in a .json file"),
        ("keyed.json", "one object keyed by id"),
        ("array.json", None),
    ]:
        (tmp_path / name).write_bytes(FILES[name])
        opened = open_source(Source(path=str(tmp_path / name)))
        assert len(list(opened.rows)) == 3
        assert opened.notes == ([note] if note else []), name


def test_a_files_name_is_said_once() -> None:
    tally = Count()
    for place in ('my file.json:1 (key "a:2")', "my file.json:1 (row 4)", "b:3.jsonl:7", "my file.json:3"):
        tally.add(place)
    assert str(tally) == '4 (my file.json:1 (key "a:2"), :1 (row 4), b:3.jsonl:7, ...)'
