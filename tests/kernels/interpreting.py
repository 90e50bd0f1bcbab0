"""Tests of Triton kernels in Triton's interpreter, which must be chosen before triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="run by test_interpreter, in a process of its own")
outside = pytest.mark.skipif(INTERPRETED, reason="starts the process that this is")


def interpret(files: list[Path], select: str) -> None:
    """Run what ``select`` marks in these files, in a process that interprets kernels."""
    command = [sys.executable, "-m", "pytest", "-q", "--confcutdir=tests", "-p", "no:cacheprovider", "-m", select]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    run = subprocess.run([*command, *map(str, files)], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
