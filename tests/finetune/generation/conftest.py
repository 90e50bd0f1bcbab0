"""The model whose answers are looked at."""

from pathlib import Path
from typing import Any

import pytest

import hybrid_ft


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return hybrid_ft.load(tiny_base)
