"""Runs and trainers of the stages behind SFT, on given rows or on a stream of pairs."""

import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def run_shown(recipe: Any, stage: Any, **how: bool) -> SimpleNamespace:
    """A start of the recipe's run: its exit status, what was on the screen, its folder."""
    from rich.console import Console

    from hybrid_ft.finetune.training.run import run

    screen = io.StringIO()
    status = run(recipe, stage, Console(file=screen, width=200), **how)
    return SimpleNamespace(status=status, screen=screen.getvalue(), folder=Path(recipe.output), recipe=recipe)


def drawn(rows: Callable[..., Any], count: int, held_out: int, seed: int, tokenizer: Any) -> SimpleNamespace:
    """What a stage's ``prepare`` gives: so many of ``rows`` to train on, and held out."""
    return SimpleNamespace(
        train=rows(count, seed),
        eval=rows(held_out, seed + 1, name="held.jsonl") if held_out else None,
        report=SimpleNamespace(summary=lambda: [f"{count} rows"], as_dict=dict),
        eos_token_ids=[3, 0],
        chat_template=tokenizer.chat_template,
        template_arguments={},
    )


def run_on(
    prepared: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, recipe: Any, stage: Any, **how: bool
) -> SimpleNamespace:
    """``run_shown`` on these rows instead of the recipe's."""
    monkeypatch.setattr(sys.modules[stage.plan.__module__], "prepare", lambda recipe, tokenizer: prepared)
    started = run_shown(recipe, stage, **how)
    started.prepared = prepared
    return started


def trainer_parts(tokenizer: Any, folder: Path, show_progress: Callable[..., Any], rows: Any) -> dict[str, Any]:
    """What any trainer gets here but its model, arguments and rows; ``folder`` is the run's."""
    from rich.console import Console

    from hybrid_ft.finetune.runs.folder import RunFolder
    from hybrid_ft.finetune.runs.signals import StopRequest

    return {
        "processing_class": tokenizer,
        "callbacks": [show_progress(Console(file=io.StringIO()), folder.parent / "metrics.jsonl")],
        "folder": RunFolder(folder),
        "keep": 2,
        "stop": StopRequest(),
        "origins": lambda row: rows[row]["origin"],
    }


def streams_of_pairs(folder: Path, base: Path, stage: Any) -> Callable[..., SimpleNamespace]:
    """``go("run")``: 8 steps of 4 pairs, windows of 8, over the end of a pass of 22 pairs and two that are held out.
    Row 10 is broken; a reward model's pairs have margins."""
    from hybrid_ft.finetune.recipe.schema import Recipe

    chance = random.Random(0)
    with open(folder / "pairs.jsonl", "w") as file:
        for number in range(25):
            row = {"prompt": f"{number}?", "chosen": "word " * chance.randint(1, 5), "rejected": f"no {number} it is"}
            margin = {"margin": number % 2} if stage.name == "reward" else {}
            file.write("{broken\n" if number == 9 else json.dumps(row | margin) + "\n")
    data = {"sources": [{"path": str(folder / "pairs.jsonl")}], "streaming": True, "shuffle_buffer": 9}
    usual: dict[str, dict[str, Any]] = {
        "model": {"path": str(base)},
        "data": data | {"on_bad_row": "skip", "max_dropped": 0.1, "max_length": 96, "eval": {"fraction": 0.08}},
        "train": {"steps": 8, "batch_tokens": 128, "learning_rate": 1e-3, "save_every": 2},
        stage.name: {"pairs_per_step": 4},
        "evaluate": {"max_new_tokens": 4},
    }

    def go(output: str, **sections: Any) -> SimpleNamespace:
        given = {name: keys | sections.get(name, {}) for name, keys in usual.items()}
        return run_shown(Recipe.model_validate(given | {"output": str(folder / output)}), stage)

    return go
