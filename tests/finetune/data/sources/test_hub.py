"""Datasets of the hub: what is asked for, and what happens without a network."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
from huggingface_hub import constants

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources import hub
from hybrid_ft.finetune.data.sources.rows import Row
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source

ROWS = [{"a": "one"}, {"a": "two"}]


@pytest.fixture
def nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint that refuses connections, for libraries that have been told nothing."""
    for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(module, name, "http://127.0.0.1:9")
    for module in (constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)


def test_without_a_network_it_fails_at_once(nothing_listens: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its libraries would ask again and again, and sleep in between."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(InputError, match=r"someone/rows\[train\]: .*the hub cannot be reached, and the cache") as error:
        list(open_source(Source(path="someone/rows")).rows)
    assert error.value.status == 3 and "\n" not in str(error.value)
    assert slept == []
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE


def test_without_a_network_the_cache_is_opened(
    nothing_listens: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    datasets.load_dataset("json", data_files=str(tmp_path / "rows.json"), cache_dir=str(tmp_path / "made"))
    (version,) = (tmp_path / "made/json").glob("*/0.0.0")
    cached = tmp_path / "cache/someone___rows/default/0.0.0"
    shutil.copytree(version, cached)
    for arrow in cached.glob("*/*.arrow"):
        arrow.rename(arrow.with_name("rows-train.arrow"))
    for info in cached.glob("*/dataset_info.json"):
        info.write_text(json.dumps(json.loads(info.read_text()) | {"dataset_name": "rows", "config_name": "default"}))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert [row.values for row in open_source(Source(path="someone/rows")).rows if isinstance(row, Row)] == ROWS


def test_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(path: str, name: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    opened = open_source(Source(path="someone/rows", name="main", split="test", revision="v1"))
    assert opened.name == "someone/rows[test]"
    assert [(row.line, row.values) for row in opened.rows if isinstance(row, Row)] == list(enumerate(ROWS))
    assert asked == [("someone/rows", "main", "test", "v1")]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (ConnectionError("Couldn't reach 'someone/rows' on the Hub\n(offline)"), 3),
        (FileNotFoundError("no such dataset"), 3),
        (ValueError("Unknown split 'x'. Should be one of ['train']."), 2),
    ],
)
def test_failures_are_one_line(failure: Exception, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    with pytest.raises(InputError, match=r"someone/rows\[train\]: cannot be loaded from the hub") as error:
        list(open_source(Source(path="someone/rows")).rows)
    assert error.value.status == status and "\n" not in str(error.value)


def test_a_program_is_not_run_and_its_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Dataset scripts are no longer supported, but found rows.py")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    said = r"a program of its own, .*; name one of its data files, hf://datasets/someone/rows/FILE, or a local copy"
    with pytest.raises(InputError, match=said) as error:
        list(open_source(Source(path="someone/rows")).rows)
    assert error.value.status == 2 and "\n" not in str(error.value)
