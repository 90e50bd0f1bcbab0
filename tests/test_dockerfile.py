"""The Dockerfile: what it copies is there and whole, and its versions are the tested ones. It is not built here."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path


def copied(root: Path) -> list[str]:
    lines = re.findall(r"(?m)^COPY (.+)$", (root / "Dockerfile").read_text())
    return [name for line in lines for name in line.split()[:-1]]


def test_what_it_copies_is_there_and_reaches_docker(root: Path) -> None:
    assert [name for name in copied(root) if not (root / name).exists()] == []
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == set(copied(root))


def test_it_copies_all_that_the_package_is_made_of(root: Path) -> None:
    """Every declared package and every folder of package data."""
    tool = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name.split(".")[1] for name in tool["packages"] if "." in name}
    data = {pattern.split("/")[0] for pattern in tool["package-data"]["hybrid_ft"]}
    own = {path.name for path in root.glob("*.py")}
    assert folders | data | own <= set(copied(root))


def test_its_torch_is_the_tested_one_and_it_starts_launch(root: Path) -> None:
    spec = importlib.util.spec_from_file_location("install_torch", root / "scripts" / "install_torch.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text = (root / "Dockerfile").read_text()
    triton = re.findall(r"triton==[\d.]+", (root / "Makefile").read_text())
    assert f'ARG TORCH="torch=={script.VERSION} {triton[0]}"' in text
    assert json.loads(re.findall(r"(?m)^ENTRYPOINT (.+)$", text)[0]) == ["hybrid-ft", "launch"]
