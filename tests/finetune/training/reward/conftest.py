"""Pairs of random tokens with margins, a trainer on them, and whole runs of a reward model."""

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


def random_pairs(count: int, seed: int = 0, name: str = "pairs.jsonl") -> Any:
    """With answers of 1 to 12 tokens and their end."""

    def pair(chance: random.Random, tokens: Tokens) -> dict[str, Any]:
        sides = {"chosen_ids": [*tokens(1, 12), 3], "rejected_ids": [*tokens(1, 12), 3]}
        return sides | {"margin": chance.choice([0.0, 0.5])}

    return random_rows(count, seed, name, pair)


@pytest.fixture(scope="session")
def plain_scorer() -> Any:
    """transformers' reward model of Olmo Hybrid, for which it has no name: as docs/in-your-own-script.md makes it."""
    from transformers.modeling_layers import GenericForSequenceClassification
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridPreTrainedModel

    return type(
        "OlmoHybridForSequenceClassification", (GenericForSequenceClassification, OlmoHybridPreTrainedModel), {}
    )


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Any]:
    return random_pairs


def recipe_of(base: Path, output: Path, **sections: Any) -> Any:
    from hybrid_ft.finetune.recipe.schema import Recipe

    return Recipe.model_validate(
        {
            "model": {"path": str(base)} | sections.get("model", {}),
            "data": {"sources": [{"path": "pairs.jsonl"}], "max_length": 48},
            "train": {"steps": 6, "batch_tokens": 100, "learning_rate": 1e-3, "save_every": 2}
            | sections.get("train", {}),
            "reward": {"pairs_per_step": 8} | sections.get("reward", {}),
            "evaluate": sections.get("evaluate", {}),
            "output": str(output),
        }
    )


@pytest.fixture
def make_trainer(steady_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """A ``ScoreTrainer`` whose step is all pairs; ``moved`` is by how much its weights differ from the base's."""

    def make(pairs: Any, batch_tokens: int = 10_000, moved: float = 0.0, lora: bool = False, **reward: Any) -> Any:
        import hybrid_ft
        from hybrid_ft.finetune.runs.folder import RunFolder
        from hybrid_ft.finetune.training.reward.metrics import show_progress
        from hybrid_ft.finetune.training.reward.stage import plan_of, reward_arguments
        from hybrid_ft.finetune.training.reward.trainer import ScoreTrainer
        from hybrid_ft.hybrid_model import adapters

        reward = {"pairs_per_step": len(pairs)} | reward
        recipe = recipe_of(steady_base, tmp_path / "run", reward=reward, train={"batch_tokens": batch_tokens})
        pairs = pairs.add_column("row", list(range(len(pairs))))
        model = hybrid_ft.load(steady_base, dtype=torch.float32, scores=True)
        move(model, moved)
        if lora:
            model = adapters.add_lora(model, rank=4, alpha=8)
        folder = RunFolder(tmp_path / "run")
        return ScoreTrainer(
            model,
            args=reward_arguments(recipe, plan_of(recipe, SimpleNamespace(train=pairs)), folder),
            train_dataset=pairs,
            eval_dataset=pairs,
            pairs_per_step=recipe.reward.pairs_per_step,
            batch_tokens=batch_tokens,
            **trainer_parts(tiny_tokenizer, tmp_path / "run", show_progress, pairs),
        )

    return make


@pytest.fixture
def start_reward(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``start_reward(rows=..., train={...}, reward={...}, ...)`` runs a recipe on random pairs
    into ``tmp_path / output``."""

    def go(
        output: str = "run", rows: int = 20, held_out: int = 0, seed: int = 0, base: Path = tiny_base, **sections: Any
    ) -> Any:
        from hybrid_ft.finetune.training.reward.stage import REWARD

        recipe = recipe_of(base, tmp_path / output, **sections)
        return run_on(drawn(random_pairs, rows, held_out, seed, tiny_tokenizer), monkeypatch, recipe, REWARD)

    return go
