"""Packed files that are cut short or damaged: every whole row before that place is read, and nothing else."""

import csv
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from file_kinds import PACK

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

_NOISE = random.Random(0)
ROWS = [{"a": f"{_NOISE.getrandbits(4000):x}", "b": str(number)} for number in range(200)]


def table(rows: list[dict[str, str]]) -> str:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, ["a", "b"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


FORMS: dict[str, tuple[str, Callable[[list[dict[str, str]]], str], Callable[[int], int]]] = {
    "lines": ("jsonl", lambda rows: "".join(json.dumps(row) + "\n" for row in rows), lambda number: number + 1),
    "lines in a .json file": ("json", lambda rows: "\n".join(map(json.dumps, rows)), lambda number: number + 1),
    "an array on one line": ("json", json.dumps, lambda number: 1),
    "an array": ("json", lambda rows: json.dumps(rows, indent=0), lambda number: 4 * number + 2),
    "a table": ("csv", table, lambda number: number + 2),
}
"""Of each: the file's suffix, its text, and the line of a row by its number."""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [2, 200])
@pytest.mark.parametrize("packing", [".gz", ".xz"])
def test_all_rows_before_the_cut_are_read(packing: str, count: int, form: str, tmp_path: Path) -> None:
    """These packings give what they hold up to the cut, in which only the last row lies."""
    suffix, text, line = FORMS[form]
    path = tmp_path / f"a.{suffix}{packing}"
    path.write_bytes(PACK[packing](text(ROWS[:count]).encode())[:-250])
    rows: list[Any] = []
    with pytest.raises(InputError) as error:
        rows.extend(open_source(Source(path=str(path))).rows)
    assert [row.values for row in rows] == ROWS[: count - 1]
    last = line(count - 2)
    assert rows[-1].line == last
    said = f"{path}:{last}: the {packing[1:]} data after this line ends in the middle; the file was cut short"
    assert str(error.value) == said


@pytest.mark.parametrize(("packing", "block"), [(".zst", 2**17), (".bz2", 900_000)])
def test_all_whole_blocks_before_the_cut_are_read(packing: str, block: int, tmp_path: Path) -> None:
    """What these two pack they pack in blocks, of which a part says nothing."""
    rows_of_blocks = [{"a": f"{_NOISE.getrandbits(4000):x}"} for _ in range(2000)]
    text = "".join(json.dumps(row) + "\n" for row in rows_of_blocks)
    path = tmp_path / f"a.jsonl{packing}"
    path.write_bytes(PACK[packing](text.encode())[:-200])
    rows: list[Any] = []
    with pytest.raises(
        InputError, match=r":\d+: the \w+ data after this line ends in the middle; the file was cut short"
    ):
        rows.extend(open_source(Source(path=str(path))).rows)
    assert [row.values for row in rows] == rows_of_blocks[: len(rows)]
    reached = sum(len(json.dumps(row)) + 1 for row in rows_of_blocks[: len(rows) + 1])
    assert reached > len(text) // block * block - block // 10  # bz2's blocks are a little smaller than it says


@pytest.mark.parametrize("packing", [".gz", ".bz2", ".xz", ".zst"])
def test_nothing_of_a_text_or_a_table_in_columns_is_read(packing: str, tmp_path: Path) -> None:
    parquet = io.BytesIO()
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), parquet)
    for name, raw in (("a.txt", table(ROWS).encode()), ("a.parquet", parquet.getvalue())):
        path = tmp_path / f"{name}{packing}"
        path.write_bytes(PACK[packing](raw)[:-200])
        with pytest.raises(
            InputError, match=f"^{path}: the {packing[1:]} data ends in the middle; the file was cut short$"
        ):
            next(iter(open_source(Source(path=str(path))).rows))


def test_damage_in_a_zip_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("a.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    path.write_bytes(path.read_bytes().replace(b'"199"', b'"198"'))
    rows: list[Any] = []
    with pytest.raises(InputError, match=r"a\.zip:\d+: the zip data after this line is damaged \("):
        rows.extend(open_source(Source(path=str(path))).rows)
    assert len(rows) > 180
    assert [row.values for row in rows] == ROWS[: len(rows)]


def test_a_disk_that_fails_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gzip

    def fails(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(PACK[".gz"](b'{"a": 1}\n'))
    monkeypatch.setattr(gzip.GzipFile, "read1", fails)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: cannot be read \(Input/output error\)"):
        next(iter(open_source(Source(path=str(path))).rows))
