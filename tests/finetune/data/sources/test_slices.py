"""Slices of local data are the datasets library's own."""

import json
from pathlib import Path

import datasets
import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.rows import NoRows, Row
from hybrid_ft.finetune.data.sources.slices import Slice, slices
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

SPECS = ["train", "train[:3]", "train[2:5]", "train[-4:]", "train[:-4]", "train[10%:20%]", "train[50%:]", "train[95%:]"]
SPECS += ["train[:2]+train[-1:]", "train[:50%] + train[:1]", "train[33%:66%](closest)", "train[7:7_0]"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"a": number}) + "\n" for number in range(37)))
    return path


@pytest.mark.parametrize("spec", SPECS)
def test_a_slice_is_what_the_library_takes(spec: str, rows: Path, tmp_path: Path) -> None:
    theirs = datasets.load_dataset(
        "json", data_files=str(rows), split=spec.replace(" + ", "+"), cache_dir=str(tmp_path / "cache")
    )
    ours = open_source(Source(path=str(rows), split=spec)).rows
    assert [row.values["a"] for row in ours if isinstance(row, Row)] == theirs["a"][:]


def test_rows_are_counted_only_where_it_matters() -> None:
    counted: list[str] = []

    def count(split: str) -> int:
        counted.append(split)
        return 10

    assert slices("train[2:5]+test", count, ["train", "test"]) == [Slice("train", 2, 5), Slice("test")]
    assert counted == []
    assert slices("train[-5:]+train[:20%]", count, ["train", "test"]) == [Slice("train", 5, 10), Slice("train", 0, 2)]
    assert counted == ["train"]


def test_bad_rows_outside_a_slice_are_not_read(rows: Path) -> None:
    rows.write_text('{"a": 1}\n{"a": 2}\nnot JSON\n')
    assert len(list(open_source(Source(path=str(rows), split="train[:2]")).rows)) == 2


def test_a_slice_longer_than_its_split_is_noted(rows: Path) -> None:
    opened = open_source(Source(path=str(rows), split="train[:1000]"))
    assert len(list(opened.rows)) == 37
    assert opened.notes == ["train[0:1000] holds only 37"]


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ("test", "there is no split test; must be of train, such as train[:1000]"),
        ("test[:3]", "there is no split test"),
        ("train+tset[:3]", "there is no split tset"),
        ("train[:", "must be a split (train), or a part of one such as train[:1000]"),
        ("train[1:2:3]", "must be a split (train)"),
        ("train[a:b]", "must be a split (train)"),
        ("train[:200%]", "must be a split (train)"),
        ("+", "must be a split (train)"),
    ],
)
def test_what_is_no_slice(split: str, says: str, rows: Path) -> None:
    with pytest.raises(InputError) as error:
        list(open_source(Source(path=str(rows), split=split)).rows)
    assert f"{rows}: split: got {split!r}; " in str(error.value) and says in str(error.value)


def test_a_slice_without_a_row(rows: Path) -> None:
    with pytest.raises(NoRows, match=r"rows\.jsonl\[train\[40:50\]\]: 0 rows"):
        list(open_source(Source(path=str(rows), split="train[40:50]")).rows)


def test_a_file_may_be_named_after_its_split(rows: Path) -> None:
    test = rows.rename(rows.with_name("my-test.jsonl"))
    assert len(list(open_source(Source(path=str(test), split="test[:5]")).rows)) == 5
