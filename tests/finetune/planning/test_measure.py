"""One layer of each kind stands for all; times are not asserted."""

from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.memory import Batch
from hybrid_ft.finetune.planning import measure
from hybrid_ft.finetune.planning.work import Work
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.hybrid_model.checkpoint.config import find_config

WORK = Work(Batch(64, 64), 6400, 1.0, 100, 1, 0.0, 0.0, "", "", (40, 24))


@pytest.fixture
def recipe(tiny_base: Any) -> Any:
    def go(**model: Any) -> Recipe:
        sources = {"sources": [{"path": "rows.jsonl"}]}
        return Recipe.model_validate({"model": {"path": str(tiny_base)} | model, "data": sources})

    return go


def test_times_are_put_together(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of 2 and 5 s, 3 s outside them, 1 ms of the optimizer for each trained number."""
    layers = {"linear_attention": 2.0, "full_attention": 5.0}

    def times(recipe: Any, config: Any, kinds: list[str], batch: Any, seconds: float) -> measure._Times:
        return measure._Times(3.0 + sum(layers[kind] for kind in kinds), 0.001 * 10 * len(kinds), 10 * len(kinds))

    monkeypatch.setattr(measure, "_of_layers", times)
    config = find_config(recipe().model.path)
    step = measure.timed(recipe(), config, WORK, trained=500)
    assert (step.rest, step.optimizer, step.tokens) == (pytest.approx(3.0), pytest.approx(0.5), 64)
    assert step.micro_batch == pytest.approx(3.0 + 2.0 + 5.0)


@pytest.mark.parametrize("model", [{}, {"lora": {"rank": 2}}, {"gradient_checkpointing": True}])
def test_real_layers_are_timed(recipe: Any, model: dict[str, Any]) -> None:
    of = recipe(**model)
    lines = measure.measure(of, find_config(of.model.path), WORK, trained=1000, seconds=0.0)
    assert "linear attention" in lines[0] and "full attention" in lines[0] and "x 1" in lines[0]
    assert "tokens/s" in lines[1] and "the run on one of these" in lines[2]


def test_layers_of_no_known_kind(recipe: Any) -> None:
    config = find_config(recipe().model.path)
    config.layer_types = None
    with pytest.raises(InputError, match="--measure: olmo_hybrid does not say the kinds"):
        measure.timed(recipe(), config, WORK, 1)
