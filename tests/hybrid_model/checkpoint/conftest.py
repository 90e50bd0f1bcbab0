"""A small model, and the folder it is saved in."""

import sys
from pathlib import Path

import pytest

from hybrid_ft.hybrid_model.checkpoint import tensor_files
from hybrid_ft.hybrid_model.checkpoint.save import save

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours


@pytest.fixture
def ours(make_pair):
    return make_pair(seed=2)[1]


@pytest.fixture
def saved(ours, tmp_path):
    return save(ours, tmp_path / "saved")


@pytest.fixture
def small_blocks(monkeypatch):
    """Weights are read and written in several blocks, as those of a large model."""
    monkeypatch.setattr(tensor_files, "BLOCK", 300)


@pytest.fixture(scope="session")
def bases(make_pair, tmp_path_factory):
    """Two models to adapt, the head of one its embedding."""
    made = {}
    for name, fields in {"untied": {}, "tied": {"tie_word_embeddings": True}}.items():
        made[name] = save(make_pair(seed=3, **fields)[1], tmp_path_factory.mktemp(name))
    return made
