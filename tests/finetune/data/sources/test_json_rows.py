"""JSON lines and arrays: a bad row costs itself."""

import json
from pathlib import Path

import pytest
from file_kinds import Read, lines, values

from hybrid_ft.finetune.data.sources.rows import BadRow

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


def test_a_line_of_form_feeds_is_a_bad_row_wherever_it_stands(tmp_path: Path, rows_of: Read) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\x0c\n\n\x0b\n" + b'{"a": 1}\n' + b"\x0c\n")
    assert [(row.line, isinstance(row, BadRow)) for row in rows_of(path)] == [
        (1, True),
        (3, True),
        (4, False),
        (5, True),
    ]
