"""A right recipe resolves, and reads back the same."""

import subprocess
import sys
from pathlib import Path

import pytest
from recipe_files import MINIMAL, write

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("folder")


def test_minimal_recipe_resolves() -> None:
    recipe = load_recipe(write(MINIMAL))
    assert recipe.output == "runs/mine"
    assert recipe.train.learning_rate == 2.5e-5
    assert recipe.train.betas == [0.9, 0.95]
    assert recipe.data.eval.wanted is False


def test_lora_has_its_own_learning_rate() -> None:
    assert load_recipe(write(MINIMAL), ["model.lora={}"]).train.learning_rate == 2e-4
    assert load_recipe(write(MINIMAL), ["model.lora={}", "train.learning_rate=1e-6"]).train.learning_rate == 1e-6


def test_resolved_recipe_reads_back_the_same() -> None:
    text = MINIMAL + "evaluate:\n  samples: ['1e-5', 'no', \"two\\nlines\", 'café: #1']\ntrain:\n"
    recipe = load_recipe(write(text), ["model.lora.rank=8", "data.eval.count=3", "data.sources.0.weight=0.1"])
    again = load_recipe(write(recipe.to_yaml(), "resolved.yaml"))
    assert again == recipe


@pytest.mark.parametrize("name", ["nowhere.yaml", "no/such/recipe", "x" * 5000, "."])
def test_no_such_recipe(name: str) -> None:
    with pytest.raises(InputError) as refused:
        load_recipe(name)
    assert "\n" not in str(refused.value)


def test_loading_imports_nothing_heavy() -> None:
    """A wrong recipe must be refused within a second: torch alone takes longer."""
    Path("bad.yaml").write_text(MINIMAL + "trian: 1\n")
    code = (
        "import sys\nfrom hybrid_ft.finetune.recipe.load import load_recipe\n"
        "try: load_recipe('bad.yaml')\nexcept ValueError: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets', 'trl', 'peft', 'numpy', 'rich'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
