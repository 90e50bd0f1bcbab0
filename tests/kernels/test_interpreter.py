"""Starts the process in which Triton's interpreter runs the layer's kernels, and the model on them: see conftest.py."""

from pathlib import Path

import pytest
from interpreting import interpret, outside

pytest.importorskip("triton")


@outside
@pytest.mark.kernels
@pytest.mark.parametrize("half", ["not kernels", "kernels"])
def test_interpreter(half: str) -> None:
    here = Path(__file__).parent
    files = [*sorted(here.glob("*/test_triton.py")), here.parent / "hybrid_model" / "test_triton.py"]
    assert len(files) > 1
    interpret(files, half)
