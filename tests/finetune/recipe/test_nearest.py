"""Suggestions: likely slips find their file, unlike ones find nothing."""

import os
from pathlib import Path

import pytest

from hybrid_ft.finetune.recipe.nearest import nearest_file


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("data/train.jsonl", "data/heldout.csv", "data/heldout.jsonl"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("data/trian.jsonl", "; did you mean data/train.jsonl?"),
        ("data/train.json", "; did you mean data/train.jsonl?"),
        ("data/held-out.jsonl", "; did you mean data/heldout.jsonl?"),
        ("data/held-out.csv", "; did you mean data/heldout.csv?"),
        ("data/test.jsonl", ""),  # alike in its suffix alone
        ("dta/train.jsonl", "; there is no folder dta either"),
        ("a\x1fb/train.jsonl", ""),
        ("https://example.com/train.jsonl", ""),
    ],
)
def test_nearest_file(folder: Path, path: str, said: str) -> None:
    assert nearest_file(path) == said


def test_a_file_beside_the_recipe_is_found(folder: Path) -> None:
    assert nearest_file("trian.jsonl", "data") == f"; did you mean {os.path.join('data', 'train.jsonl')}?"
