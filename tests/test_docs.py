"""What README and docs say can be looked up: links lead somewhere, commands and make targets exist, the picture is true."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
from typer.main import get_command

from hybrid_ft import cli


def pages(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "datasets").rglob("*.md")])


def found(root: Path, pattern: str) -> list[tuple[str, str]]:
    """(page, match) of every page."""
    matches = [(page, match) for page in pages(root) for match in re.findall(pattern, page.read_text(encoding="utf-8"))]
    assert len(matches) > 3
    return [(str(page.relative_to(root)), match) for page, match in matches]


def test_links_lead_somewhere(root: Path) -> None:
    links = [(page, link.split("#")[0]) for page, link in found(root, r"\]\(([^)]+)\)") if "://" not in link]
    assert [(page, link) for page, link in links if link and not (root / page).parent.joinpath(link).exists()] == []


def test_commands_exist(root: Path) -> None:
    commands = set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    named = found(root, r"(?m)^ {4}hybrid-ft (\w+)|`hybrid-ft (\w+)")
    assert [(page, word) for page, words in named for word in words if word and word not in commands] == []


def test_make_targets_exist(root: Path) -> None:
    targets = set(re.findall(r"(?m)^([\w-]+):", (root / "Makefile").read_text()))
    named = found(root, r"(?m)^ {4}make ([\w-]+)|`make ([\w-]+)")
    assert [(page, word) for page, words in named for word in words if word and word not in targets] == []


@pytest.mark.slow
def test_the_picture_is_what_the_program_draws(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the report looks otherwise on purpose: python scripts/make_data_picture.py"""
    script = importlib.util.spec_from_file_location("make_data_picture", root / "scripts" / "make_data_picture.py")
    assert script is not None and script.loader is not None
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    monkeypatch.setattr(module, "PICTURE", tmp_path / "data.svg")
    monkeypatch.setattr("rich.console.Console", module.rich.console.Console)  # the script replaces it
    before = os.getcwd()
    try:
        module.main()
    finally:
        os.chdir(before)
    assert (tmp_path / "data.svg").read_text() == (root / "docs" / "images" / "data.svg").read_text()
