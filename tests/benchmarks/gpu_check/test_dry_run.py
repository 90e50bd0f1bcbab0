"""The GPU check on a machine without a GPU: every step's imports, arguments and shapes, and what
becomes of a failure."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("triton")
MODULES = (
    "libraries",
    "predictions",
    "rows",
    "steps",
    "table",
    "variants",
    "recording",
    "sizes",
    "prebuild",
    "launched",
)


@pytest.fixture
def folder(root: Path) -> Path:
    return root / "benchmarks" / "gpu_check"


@pytest.fixture
def load(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Modules of the folder, forgotten afterwards: other folders have modules of the same names."""
    monkeypatch.syspath_prepend(str(folder))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield module
    for name in MODULES:
        sys.modules.pop(name, None)


def check(folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(folder), "--dry", "--seconds", "3600", "--out", str(out), *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "gpu_check.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_is_compiled_and_launched(folder: Path, tmp_path: Path) -> None:
    done = check(folder, tmp_path, "--steps", "compile,launches,layer kernels")
    found = rows(tmp_path)
    assert done.returncode == 0, done.stdout + (tmp_path / "gpu_check_1.log").read_text()
    assert [row for row in found if "failed" in row] == []
    names = {row["name"] for row in found}
    for kernel in ("weights_kernel", "forward_kernel", "backward_kernel", "query_kernel", "key_kernel"):
        assert any(name.startswith(f"8 sequences: {kernel}") for name in names), kernel
        assert any(name.startswith(f"1 sequence: {kernel}") for name in names), kernel
    assert (tmp_path / "gpu_check_1.txt").read_text().strip() == done.stdout.strip()


@pytest.mark.kernels
@pytest.mark.parametrize("part", ["1", "2"])
def test_everything(folder: Path, tmp_path: Path, part: str) -> None:
    done = check(folder, tmp_path, "--part", part)
    assert done.returncode == 0, done.stdout + (tmp_path / f"gpu_check_{part}.log").read_text()
    failed = [row for row in rows(tmp_path) if "failed" in row and row["step"] != "machine"]
    # a rival may be missing, never one of ours; memory is a GPU's
    assert [row for row in failed if "No module named 'fla'" not in row["failed"] and "memory" not in row["name"]] == []


def test_predictions_are_of_what_is_launched(load) -> None:
    """A row finds its prediction by its name, which holds the settings."""
    words = {load("variants").words(*choice) for choices in load("variants").CHOICES.values() for choice in choices}
    kernels = [name for name in load("predictions").PREDICTED if "_kernel, " in name]
    assert kernels and {name.split("_kernel, ")[1] for name in kernels} <= words


@pytest.mark.slow
def test_a_step_that_breaks_costs_itself_alone(
    folder: Path, load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its time limit ends it; what is wrong stands first in the table and in the exit status."""
    import runpy
    from types import SimpleNamespace

    steps = load("steps")
    broken = [
        steps.Step(1, "missing", "no_such_module", "run", 60),
        steps.Step(1, "endless", "time", "sleep", 6),
    ]
    main = runpy.run_path(str(folder / "__main__.py"))
    options = SimpleNamespace(part=1, out=tmp_path, dry=False)
    written = load("rows").Rows(tmp_path, 1, "check")
    # --step must be one of the steps, so the child refuses these: exit status 2
    main["run_step"](broken[0], options, tmp_path, 1e18, written)
    monkeypatch.setattr(main["subprocess"], "Popen", lambda command, **rest: Popen([sys.executable, "-c", "import time; time.sleep(60)"], **rest))  # fmt: skip
    main["run_step"](broken[1], options, tmp_path, 1e18, written)
    main["run_step"](broken[1], options, tmp_path, 0, written)
    first, second, third = rows(tmp_path)
    assert first["wrong"] and "exit status 2" in first["failed"]
    assert second["failed"] == "stopped after 6 s" and "wrong" not in second
    assert third["failed"].startswith("not begun")
    assert load("table").table([first, second]).splitlines()[1].startswith("WRONG check: missing")


Popen = subprocess.Popen
