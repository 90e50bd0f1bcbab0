"""Random pairs on the small base of the folder above, a trainer for them, and whole runs."""

import io
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_pairs() -> Callable[..., Any]:
    return random_pairs


def random_pairs(count: int, seed: int = 0, prompts: tuple[int, int] = (1, 30), name: str = "pairs.jsonl") -> Any:
    """What ``prepare_pairs`` gives: prompts of 1 to 30 tokens, some of them shared by two pairs, answers of 1 to 12."""
    from datasets import Dataset

    chance = random.Random(seed)

    def tokens(low: int, high: int) -> list[int]:
        return [chance.randrange(4, 80) for _ in range(chance.randint(low, high))]

    rows: list[dict[str, Any]] = []
    for index in range(count):
        prompt = rows[-1]["prompt_ids"] if index % 5 == 4 else tokens(*prompts)
        rows.append(
            {
                "prompt_ids": prompt,
                "chosen_ids": tokens(1, 12),
                "rejected_ids": tokens(1, 12),
                "origin": f"{name}:{index + 1}",
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def make_trainer(steady_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """A ``PairTrainer`` on pairs with the base's log-probabilities; ``moved`` is by how much its weights then differ."""

    def make(pairs: Any, batch_tokens: int = 10_000, moved: float = 0.0, lora: bool = False, **dpo: Any) -> Any:
        from rich.console import Console

        import hybrid_ft
        from hybrid_ft.finetune.recipe.schema import Recipe
        from hybrid_ft.finetune.runs.folder import RunFolder
        from hybrid_ft.finetune.runs.signals import StopRequest
        from hybrid_ft.finetune.training.dpo.metrics import ShowPairs
        from hybrid_ft.finetune.training.dpo.reference_cache import digests_of, with_reference
        from hybrid_ft.finetune.training.dpo.stage import Plan, arguments
        from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
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
            args=arguments(recipe, recipe.dpo, Plan.of(recipe, len(pairs)), folder),
            train_dataset=pairs,
            eval_dataset=None,
            processing_class=tiny_tokenizer,
            callbacks=[ShowPairs(Console(file=io.StringIO()), tmp_path / "metrics.jsonl")],
            pairs_per_step=recipe.dpo.pairs_per_step,
            batch_tokens=batch_tokens,
            folder=folder,
            keep=2,
            stop=StopRequest(),
            origins=lambda row: pairs[row]["origin"],
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


@pytest.fixture(scope="session")
def move_weights() -> Callable[[torch.nn.Module, float], None]:
    return move


def move(model: torch.nn.Module, by: float) -> None:
    """Add noise to every trained weight, the same for the same names."""
    for name, parameter in model.named_parameters():
        if by and parameter.requires_grad:
            generator = torch.Generator().manual_seed(sum(name.encode()))
            parameter.data += by * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def start_pairs(tmp_path: Path, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``start_pairs(pairs=..., train={...}, dpo={...}, ...)`` runs a recipe on random pairs into ``tmp_path / output``."""

    def go(output: str = "run", pairs: int = 20, held_out: int = 0, seed: int = 0, **sections: Any) -> Any:
        from rich.console import Console

        from hybrid_ft.finetune.recipe.schema import Recipe
        from hybrid_ft.finetune.training.dpo import stage as dpo

        recipe = Recipe.model_validate(
            {
                "model": {"path": str(tiny_base)} | sections.get("model", {}),
                "data": {"sources": [{"path": "pairs.jsonl"}], "max_length": 48} | sections.get("data", {}),
                "train": {"steps": 6, "batch_tokens": 100, "learning_rate": 1e-3, "save_every": 2}
                | sections.get("train", {}),
                "dpo": {"pairs_per_step": 8} | sections.get("dpo", {}),
                "evaluate": {"max_new_tokens": 4} | sections.get("evaluate", {}),
                "output": str(tmp_path / output),
            }
        )
        prepared = SimpleNamespace(
            train=random_pairs(pairs, seed),
            eval=random_pairs(held_out, seed + 1, name="held.jsonl") if held_out else None,
            report=SimpleNamespace(summary=lambda: [f"{pairs} pairs"]),
            end_ids=[3, 0],
            chat_template=tiny_tokenizer.chat_template,
        )
        monkeypatch.setattr(dpo, "prepare_pairs", lambda recipe, tokenizer: prepared)
        screen = io.StringIO()
        status = dpo.run(recipe, Console(file=screen, width=200))
        return SimpleNamespace(
            status=status, screen=screen.getvalue(), folder=tmp_path / output, prepared=prepared, recipe=recipe
        )

    return go
