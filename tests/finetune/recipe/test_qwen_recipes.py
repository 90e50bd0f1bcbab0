"""The recipes of Qwen3.5 resolve and say where their numbers come from."""

from pathlib import Path

import pytest

from hybrid_ft.finetune.recipe.load import load_recipe

SIZES = ("0.8b", "4b", "9b")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sft-lora", "sft", "dpo-lora"])
def test_they_resolve_and_name_their_sources(size: str, kind: str, root: Path) -> None:
    recipe = load_recipe(f"qwen3.5/{size}-{kind}", stage=kind[:3])
    assert recipe.model.path.lower().startswith(f"qwen/qwen3.5-{size}")
    text = (root / f"recipes/qwen3.5/{size}-{kind}.yaml").read_text()
    assert f"qwen3.5/{size}-{kind}\n" in text and "# Source of" in text
    if recipe.model.lora:
        # what travels between toolkits is alpha times the rate
        swept = 32 * (3e-4 if kind == "sft-lora" else 1e-5)
        assert recipe.model.lora.alpha * recipe.train.learning_rate == pytest.approx(swept)
        assert recipe.model.lora.targets == "all-linear"
