"""What a wheel holds, against the tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SHIPPED = ("kernels", "hybrid_model", "finetune", "recipes", "datasets")


@pytest.mark.slow
def test_wheel_holds_code_and_data_and_no_tests(root: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in (*SHIPPED, "tests", "benchmarks", "scripts"):
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "cli.py", "pyproject.toml", "README.md"):
        shutil.copy(root / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {f"hybrid_ft/{name}" for name in ("__init__.py", "cli.py")}
    wanted |= {
        f"hybrid_ft/{path.relative_to(source).as_posix()}"
        for name in SHIPPED
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert held == wanted
