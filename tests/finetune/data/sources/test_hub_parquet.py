"""Rows of a hub dataset of Parquet files, of which only some are fetched: those that the whole download gives."""

from collections.abc import Iterator
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.drawn_rows import Draw
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources import hub, hub_parquet, source
from hybrid_ft.finetune.data.sources.rows import Row
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

FEATURES = datasets.Features(
    {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "raw": datasets.Value("binary"),
    }
)
Fetched = list[int]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[Fetched]:
    """A dataset of three train files and one of test, of 1,000 rows in groups of 100; what is read of it, in bytes."""
    files: dict[str, list[str]] = {"train": [], "test": []}
    for number, split in enumerate(("train", "train", "train", "test")):
        rows = [
            {"text": f"{split} {number} {row} " + str(row) * 500, "label": row % 2, "raw": b"x"} for row in range(1000)
        ]
        table = datasets.Dataset.from_list(rows, features=FEATURES).with_format("arrow")[:]
        name = f"/of-a-test/{number}.parquet"
        with fsspec.open(f"memory:/{name}", "wb") as file:
            # numbers without their names, as sets whose names stand on their page alone
            pq.write_table(table.replace_schema_metadata(None), file, row_group_size=100, compression="none")
        files[split].append(f"memory:/{name}")
    builder = datasets.load_dataset_builder
    load = datasets.load_dataset

    def known(path: str, name: str | None, **how: Any) -> Any:
        return builder("parquet", data_files=files, features=FEATURES, cache_dir=str(tmp_path))

    def whole(path: str, name: str | None, *, split: str, revision: str | None) -> Any:
        return load("parquet", data_files=files, features=FEATURES, split=split, cache_dir=str(tmp_path))

    read: Fetched = []
    monkeypatch.setattr(datasets, "load_dataset_builder", known)
    monkeypatch.setattr(datasets, "load_dataset", whole)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub_parquet, "_FOUND", {})
    take = MemoryFile.read
    monkeypatch.setattr(MemoryFile, "read", lambda self, *n: read.append(len(got := take(self, *n))) or got)
    yield read
    for names in files.values():
        for name in names:
            MemoryFileSystem().rm(name)


def rows(split: str | None, wanted: list[int] | None = None) -> list[tuple[int, Any, str]]:
    asked = Source(path="someone/rows", split=split)
    opened = open_source(asked, None if wanted is None else np.array(wanted)).rows
    return [(row.line, row.values, row.values["label"].name) for row in opened if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        (None, [0, 99, 100, 1005, 2999]),
        ("test", [7]),
        ("train[:150]", None),
        ("train[990:1010]", None),
        ("train[-20:]+test[:1%]", None),
        ("train[-20:]+test[:1%]", [3, 19, 20, 29]),
        ("train[50%:]", [0, 5, 1499]),
    ],
)
def test_parts_are_what_the_whole_gives(
    split: str | None, wanted: list[int] | None, fetched: Fetched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, values and names of classes; of the bytes a small share is read."""
    part = rows(split, wanted)
    assert 0 < sum(fetched) < 1_300_000  # of 6,500,000
    monkeypatch.setattr(hub_parquet, "_WORTH", 0)
    assert rows(split, wanted) == part and len(part) == len(wanted or part) > 0


def test_a_drawn_sample_is_the_same(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[int]:
        draw = next(Draw(8, 0, 0).rounds(Source(path="someone/rows", count=8), SourceCounts("someone/rows", 0)))
        assert draw is not None
        return draw.tolist()

    in_parts = drawn()
    assert 0 < sum(fetched) < 1_300_000
    monkeypatch.setattr(source, "parquet_on_hub", lambda _: None)
    assert drawn() == in_parts and len(in_parts) == 8


def test_most_of_it_is_downloaded_whole(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in every row group: the cache then has them."""
    read = hub_parquet.HubParquet.rows
    monkeypatch.setattr(hub_parquet.HubParquet, "rows", lambda *_: pytest.fail("fetches parts"))
    assert len(rows(None, list(range(0, 3000, 50)))) == 60
    monkeypatch.setattr(hub_parquet.HubParquet, "rows", read)
    fetched.clear()
    assert [number for number, _, _ in rows("train[:10]")] == list(range(10))
    assert fetched == []  # what is in the cache is not asked for again


def test_a_hub_that_fails_on_the_way_is_said_in_a_line(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    found = hub_parquet.parquet_on_hub(Source(path="someone/rows"))
    assert found is not None
    monkeypatch.setattr(fsspec, "open", lambda *_: (_ for _ in ()).throw(ConnectionError("reset\nby peer")))
    with pytest.raises(
        InputError, match=r"someone/rows\[train\]: cannot be read from the hub \(reset by peer\)"
    ) as error:
        rows(None, [1])
    assert error.value.status == 3


def test_a_split_that_is_not_there_is_the_library_s_to_say(fetched: Fetched) -> None:
    with pytest.raises(InputError, match="Unknown split"):
        rows("trian[:10]")
