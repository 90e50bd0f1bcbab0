"""A trainer of pairs on the small base."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import move
from stage_runs import trainer_parts


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def make_trainer(steady_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """A ``PairTrainer`` on pairs with the base's log-probabilities; ``moved`` is by how much
    its weights then differ."""

    def make(pairs: Any, batch_tokens: int = 10_000, moved: float = 0.0, lora: bool = False, **dpo: Any) -> Any:
        import hybrid_ft
        from hybrid_ft.finetune.recipe.schema import Recipe
        from hybrid_ft.finetune.runs.folder import RunFolder
        from hybrid_ft.finetune.training.dpo.metrics import show_progress
        from hybrid_ft.finetune.training.dpo.stage import dpo_arguments, plan_of
        from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
        from hybrid_ft.finetune.training.reference_cache import digests_of, with_reference
        from hybrid_ft.hybrid_model import adapters

        recipe = Recipe.model_validate(
            {
                "model": {"path": str(steady_base)},
                "data": {"sources": [{"path": "pairs.jsonl"}]},
                "train": {"batch_tokens": batch_tokens, "learning_rate": 1e-2, "steps": dpo.pop("steps", 2)},
                "dpo": {"pairs_per_step": len(pairs)} | dpo,
            }
        )
        assert recipe.dpo is not None
        model = hybrid_ft.load(steady_base, dtype=torch.float32)
        if lora:
            model = adapters.add_lora(model, rank=4, alpha=8)
        folder = RunFolder(tmp_path / "run")
        trainer = PairTrainer(
            model,
            args=dpo_arguments(recipe, plan_of(recipe, SimpleNamespace(train=pairs)), folder),
            train_dataset=pairs,
            eval_dataset=None,
            pairs_per_step=recipe.dpo.pairs_per_step,
            batch_tokens=batch_tokens,
            **trainer_parts(tiny_tokenizer, tmp_path / "run", show_progress, pairs),
        )
        digests = digests_of(pairs)
        values = {}
        for pair, digest in zip(pairs, digests, strict=True):
            chosen, rejected = trainer.reference([pair])
            values[digest] = (float(chosen), float(rejected))
        trainer.train_dataset = trainer.eval_dataset = with_reference(pairs, digests, values)
        move(model, moved)
        return trainer

    return make
