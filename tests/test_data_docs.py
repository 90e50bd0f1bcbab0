"""Every example of docs/data.md is run, and what stands under it is what the program says."""

import re
import shlex
from pathlib import Path

import pytest

from hybrid_ft import cli

_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples(page: str) -> list[tuple[str, list[str], list[str]]]:
    """The recipes in their order, each with a command's further arguments and the lines that stand under it. Files are
    written as they come."""
    found: list[tuple[str, list[str], list[str]]] = []
    for kind, name, text in _BLOCK.findall(page):
        if name:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        elif kind == "yaml":
            found.append((text, [], []))
        elif kind == "sh":
            (command,) = text.splitlines()
            assert command.startswith("hybrid-ft data RECIPE "), command
            found.append((found[-1][0], shlex.split(command)[3:], []))
        else:
            assert kind == "text" and found, kind
            found[-1][2].extend(line for line in text.splitlines() if line)
    return found


def test_examples_are_what_they_say(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    found = examples((root / "docs" / "data.md").read_text(encoding="utf-8"))
    assert len(found) >= 9
    for recipe, arguments, lines in found:
        Path("recipe.yaml").write_text(f"model: {{path: tiny}}\n{recipe}", encoding="utf-8")
        status = cli.main(["data", "recipe.yaml", *arguments])
        said = capsys.readouterr()
        assert status == 0, f"{recipe}\n{said.err}"
        for line in lines:
            assert line in said.out, f"{recipe}\n{line}\n{said.out}"
