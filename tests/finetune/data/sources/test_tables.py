"""csv and tsv: a bad row costs itself."""

import csv
from pathlib import Path

import pytest
from file_kinds import Read, values

from hybrid_ft.finetune.data.sources.rows import BadRow


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
