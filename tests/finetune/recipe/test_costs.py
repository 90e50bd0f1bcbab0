"""The costs in the domain recipes' headers are what a plan says today."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.shipped import RECIPES


@pytest.fixture(scope="module")
def made(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("make_recipe_costs")


def test_tokens(made: ModuleType) -> None:
    """Of every file: the sets' rows in the recipe's shares, by hand for one."""
    for name in made.FILES:
        recipe = load_recipe(name, stage="dpo" if name.endswith("/dpo") else "sft")
        found = re.findall(r"(?m)^# Costs: .*\n(?:# .*\n)*", (RECIPES / f"{name}.yaml").read_text())
        assert len(found) == 1, name
        said = re.search(r"--tokens (\d+)", found[0].replace("\n# ", " "))
        assert said is not None and int(said[1]) == made.tokens_of(recipe), f"{name}: run make docs"
    # Bitext's 23,900 rows of 150 trained tokens are half; the other half is replay of 520 a row
    replay = 23_900 * 150 / 520
    expected = 23_900 * 190 + replay * 790
    tokens = made.tokens_of(load_recipe("domains/support/sft", stage="sft"))
    assert tokens == pytest.approx(expected, rel=0.05)


@pytest.mark.slow
def test_hours(made: ModuleType, tmp_path: Path) -> None:
    costs = made.Costs(tmp_path)
    for name in made.FILES:
        text = (RECIPES / f"{name}.yaml").read_text()
        assert made.with_costs(text, costs.of(name)) == text, f"{name}: run make docs"
