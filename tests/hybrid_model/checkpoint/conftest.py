"""A small model, and the folder it is saved in."""

import sys
from pathlib import Path

import pytest

from hybrid_ft.hybrid_model.checkpoint.save import save

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours


@pytest.fixture
def ours(make_pair):
    return make_pair(seed=2)[1]


@pytest.fixture
def saved(ours, tmp_path):
    return save(ours, tmp_path / "saved")
