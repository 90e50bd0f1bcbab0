"""What README and docs say can be looked up: links, commands, options and make targets exist, figures
and picture are true."""

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from typer.main import get_command

from hybrid_ft import cli
from hybrid_ft.finetune.recipe.shipped import recipe_names


def pages(root: Path) -> list[Path]:
    return sorted(
        [
            *root.glob("*.md"),
            *(root / "docs").rglob("*.md"),
            *(root / "datasets").rglob("*.md"),
            *(root / "recipes").rglob("*.md"),
        ]
    )


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


def test_options_and_recipes_exist(root: Path) -> None:
    """Of every command that a page shows on a line of its own, or in passing."""
    commands = get_command(cli.app).commands  # type: ignore[attr-defined]
    recipes = set(recipe_names())
    shown, wrong = 0, []
    for page, line in found(root, r"(?m)^ {4}(hybrid-ft [^\n#]+)|`(hybrid-ft [^`]+)`"):
        name, *words = shlex.split("".join(line))[1:]
        options = {option for parameter in commands[name].params for option in parameter.opts}
        for word in words:
            shown += 1
            if word.startswith("--") and word.partition("=")[0] not in options | {"--help"}:
                wrong.append((page, name, word))
            if re.match("(domains|olmo-hybrid-7b|qwen3.5|quickstart|gsm8k)/", word) and word not in recipes:
                wrong.append((page, name, word))
    assert wrong == [] and shown > 100


def test_the_benchmarks_page_says_what_was_measured(root: Path) -> None:
    """Its figures are those of benchmarks/results, rounded."""
    page = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    def results(name: str) -> list[dict[str, Any]]:
        lines = (root / "benchmarks" / "results" / f"{name}_cpu.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    wanted = []
    rules = results("gated_delta_rule")
    for device in ("AMD EPYC", "Intel(R) Xeon(R) Processor"):
        of_device = [line for line in rules if line["device"] == device and "ratio" in line]
        memory = [line["peak_bytes"]["ours"] / line["peak_bytes"]["theirs"] for line in of_device]
        ratios = ", ".join(f"{line['ratio']:.1f}" for line in of_device)
        wanted.append(f"| {ratios} | {min(memory):.2f} to {max(memory):.2f} |")
    sft = results("sft_step")[-1]
    wanted.append(f"| {sft['speed_ratio']:.1f} | {sft['memory_ratio']:.2f} |")
    for dpo in results("dpo_step")[-2:]:
        turns = zip(dpo["cpu_seconds"]["stock"], dpo["cpu_seconds"]["ours"], strict=True)
        memory = dpo["peak_bytes"]["ours"] / dpo["peak_bytes"]["stock"]
        wanted.append(f"| {median(stock / ours for stock, ours in turns):.1f} | {memory:.2f} |")
    for evaluation in results("evaluate"):
        wanted += [f"{median(ratios):.1f}" for ratios in evaluation["ratios"].values()]
    assert [figure for figure in wanted if figure not in page] == []


def test_the_battery_has_its_counts(root: Path) -> None:
    """Those of benchmarks/results/faults.jsonl, whose tests of one kind the page adds up."""
    page = (root / "docs" / "resume.md").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (root / "benchmarks/results/faults.jsonl").read_text().splitlines()]
    kinds = ("kill -9 at random moments", "kill -9 at each file operation", "kill -9 at each system call", "bad inputs")
    for kind in (*kinds, "mutated recipes", "restart of a finished run", "SIGTERM at random moments"):
        counts = [row["found"].split(";")[0].split(" of ") for row in rows if row["test"].startswith(kind)]
        assert counts and f"{sum(int(done) for done, _ in counts):,} of {sum(int(of) for _, of in counts):,}" in page, (
            kind
        )


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
