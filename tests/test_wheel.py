"""A wheel: what it holds, and the command in an environment that has nothing else of the project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SHIPPED = ("kernels", "hybrid_model", "finetune", "commands", "recipes", "datasets")
FILES = ("__init__.py", "cli.py", "errors.py", "py.typed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree as a clone has it."""
    source = tmp_path_factory.mktemp("source")
    for name in (*SHIPPED, "tests", "benchmarks", "scripts", "docs"):
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, source]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``hybrid-ft`` of an environment with the wheel over the libraries of this one.

    The libraries come by a path in a .pth file: Python reads no .pth files in there, and an editable install is one.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (libraries,) = environment.glob("lib/python*/site-packages")
    (libraries / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = environment / "bin" / "python"
    install = ["install", "-q", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    return environment / "bin" / "hybrid-ft"


def test_it_holds_code_and_data_and_no_tests(source: Path, wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    held = {name for name in names if ".dist-info/" not in name}
    wanted = {f"hybrid_ft/{name}" for name in FILES}
    wanted |= {
        f"hybrid_ft/{path.relative_to(source).as_posix()}"
        for name in SHIPPED
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    assert held == wanted
    assert [name.split("/", 1)[1] for name in names if name.endswith("LICENSE")] == ["licenses/LICENSE"]


def test_the_command_trains_from_it(command: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = run(str(command.parent / "python"), "-c", "import hybrid_ft; print(hybrid_ft.__file__)")
    assert Path(where.strip()).is_relative_to(command.parents[1])
    assert "quickstart/sft" in run(str(command), "recipes").splitlines()
    assert "6,000" in run(str(command), "data", "quickstart/sft")
    run(str(command), "sft", "quickstart/sft", "train.steps=2", "train.warmup=0", "output=result")
    assert (tmp_path / "result" / "model" / "model.safetensors").is_file()
