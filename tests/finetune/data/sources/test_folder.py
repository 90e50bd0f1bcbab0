"""Folders as data lies in them: save_to_disk's, downloaded repositories, shards, and patterns of files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources.rows import Row, origin
from hybrid_ft.finetune.data.sources.source import Opened, open_source
from hybrid_ft.finetune.recipe.data_section import Source

README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: "main/train-*.parquet"}
  - {split: test, path: "main/test-*.parquet"}
- config_name: other
  data_files: "other/*.jsonl"
---
A set.
"""


def taken(path: Path, **keys: Any) -> tuple[list[Any], Opened]:
    opened = open_source(Source(path=str(path), **keys))
    rows = list(opened.rows)
    return [row.values["a"] if isinstance(row, Row) else row for row in rows], opened


def jsonl(path: Path, *values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"a": value}) + "\n" for value in values))


def parquet(path: Path, *values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"a": list(values)}), path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    parquet(tmp_path / "main" / "train-00000-of-00002.parquet", 0, 1, 2)
    parquet(tmp_path / "main" / "train-00001-of-00002.parquet", 3, 4)
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", 5)
    jsonl(tmp_path / "other" / "rows.jsonl", 6, 7)
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"a": number} for number in range(7)])
    rows.save_to_disk(tmp_path / "one", num_shards=2)
    values, opened = taken(tmp_path / "one")
    assert values == list(range(7)) and opened.notes == ["2 files of train"]
    both = datasets.DatasetDict({"train": rows, "test": rows.select([6, 2])})
    both.save_to_disk(tmp_path / "two")
    assert taken(tmp_path / "two")[0] == list(range(7))
    values, opened = taken(tmp_path / "two", split="test")
    assert values == [6, 2]
    assert opened.notes == ["1 file of test", "splits not read: train"]
    for description in ("one/dataset_info.json", "one/state.json", "two/dataset_dict.json"):
        with pytest.raises(InputError, match="describes the data set in its folder; name the folder, .*(one|two)$"):
            taken(tmp_path / description)
    (row, _) = open_source(Source(path=str(tmp_path / "two"), split="test")).rows
    assert origin("x", row) == f"{tmp_path}/two/test/data-00000-of-00001.arrow:1"


def test_what_was_written_as_json_comes_back_as_it_was(tmp_path: Path) -> None:
    mixed = [{"a": [{"x": 1, "y": None}, {"z": "text"}]}, {"a": [{"x": {"deep": [1]}}]}]
    rows = datasets.Dataset.from_list(mixed, features=datasets.Features({"a": datasets.List(datasets.Json())}))
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    assert taken(tmp_path / "saved")[0] == taken(tmp_path / "rows.parquet")[0] == [row["a"] for row in mixed]


@pytest.mark.parametrize(
    ("describe", "says"),
    [
        (lambda one: (one / "data-00000-of-00001.arrow").unlink(), "which state.json names, is not there; save it again"),
        (lambda one: (one / "state.json").write_text("{"), "state.json: cannot be read"),
        (lambda one: (one / "state.json").write_text('{"_data_files": 3}'), "_data_files: got 3; must be a list"),
        (lambda one: (one / "state.json").write_text('{"_data_files": [3]}'), "is not there"),
        (lambda one: (one / "dataset_dict.json").write_text('{"splits": [3]}'), "must be a list of names"),
        (lambda one: (one / "data-00000-of-00001.arrow").write_bytes(b"junk" * 50), "not an Arrow file that can be read"),
    ],
)  # fmt: skip
def test_a_saved_folder_that_is_not_whole(describe: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "one")
    describe(tmp_path / "one")
    with pytest.raises(InputError) as error:
        taken(tmp_path / "one")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_repository_is_read_by_its_configurations(repository: Path) -> None:
    values, opened = taken(repository, name="main")
    assert values == [0, 1, 2, 3, 4]
    assert opened.notes == ["not read: other/rows.jsonl", "2 files of train", "splits not read: test"]
    assert taken(repository, name="main", split="test")[0] == [5]
    assert taken(repository, name="other")[0] == [6, 7]
    with pytest.raises(InputError, match="has the configurations main, other; choose one: name: main"):
        taken(repository)
    with pytest.raises(InputError, match="name: got 'third'; must be one of main, other"):
        taken(repository, name="third")
    with pytest.raises(InputError, match=r"got 'tset'; there is no split tset; must be of train, test, such as"):
        taken(repository, name="main", split="tset")


def test_a_repository_without_configurations_is_read_by_its_names(repository: Path) -> None:
    (repository / "README.md").unlink()
    (repository / "other" / "rows.jsonl").unlink()
    assert taken(repository)[0] == [0, 1, 2, 3, 4]
    assert taken(repository, split="test")[0] == [5]
    with pytest.raises(InputError, match="its README names no configurations; leave name out"):
        taken(repository, name="main")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    jsonl(tmp_path / "part-0.jsonl", 0, 1)
    jsonl(tmp_path / "part-1.jsonl")
    jsonl(tmp_path / "part-2.jsonl", 2)
    (tmp_path / "LICENSE").write_text("free")
    values, opened = taken(tmp_path)
    assert values == [0, 1, 2]
    assert opened.notes == ["3 files of train", "1 file without a row"]
    (tmp_path / "part-2.jsonl").write_text('{"a": 2}\n{"a"\n')
    *_, bad = open_source(Source(path=str(tmp_path))).rows
    assert origin("x", bad) == f"{tmp_path}/part-2.jsonl:2"


def test_files_of_another_kind_in_a_folder_are_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", 0)
    jsonl(tmp_path / "b.jsonl", 1)
    (tmp_path / "c.csv").write_text("a\n2\n")
    values, opened = taken(tmp_path)
    assert values == [0, 1] and "not read: c.csv" in opened.notes


def test_splits_without_train_must_be_chosen(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", 0)
    assert taken(tmp_path)[0] == [0]
    jsonl(tmp_path / "validation.jsonl", 1)
    with pytest.raises(InputError, match="has the splits validation, test; choose one: split: validation"):
        taken(tmp_path)


def test_folders_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without a data file that can be read$"):
        taken(tmp_path)
    (tmp_path / "model.bin").write_text("x")
    (tmp_path / "inner").mkdir()
    with pytest.raises(InputError, match="without a data file that can be read; it holds the folders inner"):
        taken(tmp_path)


def test_readmes_that_name_what_is_not_here(tmp_path: Path) -> None:
    jsonl(tmp_path / "rows.jsonl", 0)
    for data_files in ("gone/*.jsonl", "{split: 3}", "[3]"):
        (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: a\n  data_files: {data_files}\n---\n")
        with pytest.raises(InputError) as error:
            taken(tmp_path)
        assert str(error.value).startswith(f"{tmp_path}: ") and "\n" not in str(error.value)


def test_a_pattern_of_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "data" / "train-0.jsonl", 0)
    jsonl(tmp_path / "data" / "train-1.jsonl", 1)
    jsonl(tmp_path / "data" / "test-0.jsonl", 2)
    assert taken(tmp_path / "data" / "train-*.jsonl")[0] == [0, 1]
    assert taken(tmp_path / "**" / "*.jsonl")[0] == [2, 0, 1]
    assert taken(tmp_path / "data" / "test-*.jsonl", split="test")[0] == [2]
    with pytest.raises(InputError, match="there is no split test; must be of train"):
        taken(tmp_path / "data" / "t*.jsonl", split="test")
    jsonl(tmp_path / "data" / "odd[1].jsonl", 3)  # a name with such letters is itself first
    assert taken(tmp_path / "data" / "odd[1].jsonl")[0] == [3]
    (tmp_path / "data" / "notes.md").write_text("x")
    with pytest.raises(InputError, match=r"notes\.md: is not a kind of file that can be read"):
        taken(tmp_path / "data" / "*")
