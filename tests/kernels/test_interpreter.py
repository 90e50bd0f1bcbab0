"""Starts the process in which Triton's interpreter runs the layer's kernels, and the model on them: see conftest.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")


outside = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="starts the process that this is")


def interpret(select: str) -> None:
    here = Path(__file__).parent
    files = [*sorted(here.glob("*/test_triton.py")), here.parent / "hybrid_model" / "test_triton.py"]
    assert len(files) > 1
    command = [sys.executable, "-m", "pytest", "-q", "--confcutdir=tests", "-p", "no:cacheprovider", "-m", select]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, *map(str, files)], cwd=here.parents[1], env=env, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@outside
@pytest.mark.kernels
@pytest.mark.parametrize("half", ["not kernels", "kernels"])
def test_interpreter(half: str) -> None:
    interpret(half)
