"""Nemotron-Flash in plain transformers' way and laid flat; what its tests share lies beside them."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours


@pytest.fixture(scope="module")
def models(plain_and_flat):
    return plain_and_flat("nemotron_flash")
