"""docs/recipe.md is what the schema says today, and its examples are recipes."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from hybrid_ft.finetune.recipe.keys import keys
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.stages import load_stages


@pytest.fixture(scope="module")
def docs(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("make_recipe_docs")


def test_the_page_is_made_of_the_schema(docs: ModuleType) -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run make docs"


def test_every_key_and_loss_has_its_row(docs: ModuleType) -> None:
    page = docs.page()
    for key, _ in keys(Recipe):
        if not key.startswith("data.eval.sources[]"):  # described once, as data.sources[]
            assert page.count(f"\n| `{key}` |") >= 1, key
    assert all(page.count(f"\n| `{name}` |") == 1 for name in LOSSES)


def test_ranges_in_words(docs: ModuleType) -> None:
    values = {key: docs._values(field) for key, field in keys(Recipe)}
    assert values["train.learning_rate"] == "number, above 0 to 1, or `null`"
    assert values["train.warmup"] == "number, 0 to below 1"
    assert values["train.steps"] == "whole number, 1 or more, or `null`"
    assert values["train.seed"] == "whole number, 0 to 4,294,967,295"
    assert values["train.betas"] == "list of numbers, 2 of them"
    assert values["train.trackers"] == "list of `tensorboard`, `trackio`, `wandb`"
    assert values["model.gradient_checkpointing"] == "`true`, `false`, `selective`, `offload`, or `null`"
    assert values["model.dtype"] == "`auto`, `float32`, `bfloat16`"


def test_the_examples_are_recipes(docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("train", "mine", "pairs", "held-out"):
        (tmp_path / f"data/{name}.jsonl").write_text("{}\n")
    for name in ("MINIMAL", "FULL", "STAGES_EXAMPLE"):
        assert getattr(docs, name) in docs.page()
        Path(f"{name.lower()}.yaml").write_text(getattr(docs, name))
    assert load_recipe("minimal.yaml").model.path == "tiny"
    without = yaml.safe_load(docs.FULL)["train"].pop("trackers")
    assert without == ["tensorboard"]  # which need not be installed
    full = load_recipe("full.yaml", ["train.trackers=[]"], stage="dpo")
    assert full.dpo is not None and full.model.lora is not None
    (tmp_path / "sft.yaml").write_text(docs.MINIMAL)
    assert len(load_stages("stages_example.yaml").stages) == 3
