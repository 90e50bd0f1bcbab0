"""Plans for the 7B, whose config alone is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.planning import plan
from hybrid_ft.finetune.planning.plan import Asked, PlannedModel
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config


@pytest.fixture(scope="session", autouse=True)
def models_are_measured_once() -> Iterator[None]:
    """Models of the same keys and config have the same shapes, and a 7B on the meta device is half of a plan's time."""
    known: dict[Any, PlannedModel] = {}
    of = PlannedModel.of

    def once(recipe: Recipe) -> PlannedModel:
        config = Path(recipe.model.path) / "config.json"
        if recipe.model.adapter or not config.is_file():
            return of(recipe)
        key = (
            config.read_bytes(),
            recipe.model.model_dump_json(exclude={"path", "revision", "tokenizer"}),
            recipe.train.optimizer,
            recipe.reward is None,
            recipe.keeps_start,
        )
        if key not in known:
            known[key] = of(recipe)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PlannedModel, "of", once)
        yield


@pytest.fixture(scope="session")
def base_7b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7B's config alone: a plan reads no weights."""
    folder = tmp_path_factory.mktemp("7b")
    preset_config("7B").save_pretrained(folder)
    return folder


@pytest.fixture
def planned(base_7b: Path) -> Any:
    """``planned(asked, model=..., train=...)``: the lines of the plan for the 7B on rows that are not here."""

    def go(asked: Asked | None = None, **sections: Any) -> list[str]:
        recipe = Recipe.model_validate(
            {
                "model": {"path": str(base_7b)} | sections.get("model", {}),
                "data": {"sources": [{"path": "owner/rows"}], "max_length": 4096} | sections.get("data", {}),
                "train": {"batch_tokens": 32768, "accumulation": 32} | sections.get("train", {}),
            }
            | ({"dpo": sections["dpo"]} if "dpo" in sections else {})
        )
        lines: list[str] = []
        assert plan.run(recipe, asked or Asked(), lines.append) == 0
        return lines

    return go
