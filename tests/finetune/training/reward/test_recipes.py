"""Recipes that ship for reward models: they are what their headers say."""

import pytest

from hybrid_ft.finetune.recipe.load import load_recipe


@pytest.mark.parametrize(("name", "rate"), [("reward", 1e-5), ("reward-lora", 1e-4)])
def test_olmo_hybrid(name: str, rate: float) -> None:
    recipe = load_recipe(f"olmo-hybrid-7b/{name}", stage="reward")
    assert recipe.reward and (recipe.reward.pairs_per_step, recipe.reward.center_rewards_coefficient) == (128, 0.01)
    assert (recipe.train.learning_rate, recipe.train.schedule, recipe.train.warmup) == (rate, "linear", 0.03)
    assert bool(recipe.model.lora) == name.endswith("lora")
