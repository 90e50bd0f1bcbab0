"""Judged answers of random tokens, a trainer on them, and whole runs of a second."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import Tokens, move, random_rows
from stage_runs import drawn, run_on, trainer_parts


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def random_answers(count: int, seed: int = 0, name: str = "judged.jsonl") -> Any:
    """With answers of 1 to 12 tokens, most of them good."""

    def answer(chance: random.Random, tokens: Tokens) -> dict[str, Any]:
        return {"completion_ids": tokens(1, 12), "label": chance.random() < 0.6}

    return random_rows(count, seed, name, answer)


@pytest.fixture(scope="session")
def make_answers() -> Callable[..., Any]:
    return random_answers


def recipe_of(base: Path, output: Path, **sections: Any) -> Any:
    from hybrid_ft.finetune.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "model": {"path": str(base)} | sections.get("model", {}),
            "data": {"sources": [{"path": "judged.jsonl"}], "max_length": 48},
            "train": {"steps": 6, "batch_tokens": 100, "learning_rate": 1e-3, "save_every": 2}
            | sections.get("train", {}),
            "kto": {"rows_per_step": 8, "beta": 0.3} | sections.get("kto", {}),
            "evaluate": {"max_new_tokens": 4} | sections.get("evaluate", {}),
            "output": str(output),
        }
    )


@pytest.fixture
def make_trainer(steady_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """An ``AnswerTrainer`` whose step is all answers, with the base's log-probabilities; ``moved`` is by how much its
    weights then differ."""

    def make(answers: Any, batch_tokens: int = 10_000, moved: float = 0.0, lora: bool = False, **kto: Any) -> Any:
        import hybrid_ft
        from hybrid_ft.finetune.runs.folder import RunFolder
        from hybrid_ft.finetune.training.kto.metrics import show_progress
        from hybrid_ft.finetune.training.kto.stage import Split, kto_arguments, plan_of
        from hybrid_ft.finetune.training.kto.trainer import AnswerTrainer
        from hybrid_ft.hybrid_model import adapters

        kto = {"rows_per_step": len(answers)} | kto
        recipe = recipe_of(steady_base, tmp_path / "run", kto=kto, train={"batch_tokens": batch_tokens})
        split = Split.of(answers, recipe)
        model = hybrid_ft.load(steady_base, dtype=torch.float32)
        if lora:
            model = adapters.add_lora(model, rank=4, alpha=8)
        folder = RunFolder(tmp_path / "run")
        trainer = AnswerTrainer(
            model,
            args=kto_arguments(recipe, plan_of(recipe, SimpleNamespace(train=answers)), folder),
            train_dataset=split.rows,
            eval_dataset=None,
            rows_per_step=recipe.kto.rows_per_step,
            batch_tokens=batch_tokens,
            max_length=48,
            **trainer_parts(tiny_tokenizer, tmp_path / "run", show_progress, split.rows),
        )
        values = {
            digest: tuple(float(one) for one in trainer.reference([fork]))
            for fork, digest in zip(split.forks, split.digests, strict=True)
        }
        trainer.train_dataset = trainer.eval_dataset = split.with_reference(values)
        move(model, moved)
        return trainer

    return make


@pytest.fixture
def start_answers(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``start_answers(rows=..., train={...}, kto={...}, ...)`` runs a recipe on random answers
    into ``tmp_path / output``."""

    def go(output: str = "run", rows: int = 20, held_out: int = 0, seed: int = 0, **sections: Any) -> Any:
        from hybrid_ft.finetune.training.kto.stage import KTO

        recipe = recipe_of(tiny_base, tmp_path / output, **sections)
        return run_on(drawn(random_answers, rows, held_out, seed, tiny_tokenizer), monkeypatch, recipe, KTO)

    return go
