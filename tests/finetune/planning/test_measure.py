"""One layer of each kind stands for all; times are not asserted."""

from typing import Any

import pytest
import torch

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.memory import Batch
from hybrid_ft.finetune.planning import measure
from hybrid_ft.finetune.planning.work import Work
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.hybrid_model.checkpoint.config import find_config

WORK = Work(Batch(64, 64), 6400, 1.0, 100, 1, 1, 0.0, 0.0, "", "", (40, 24))


@pytest.fixture
def recipe(tiny_base: Any) -> Any:
    def go(**model: Any) -> Recipe:
        sources = {"sources": [{"path": "rows.jsonl"}]}
        return Recipe.model_validate({"model": {"path": str(tiny_base)} | model, "data": sources})

    return go


def test_times_are_put_together(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of 2 and 5 s, 3 s outside them; of the optimizer's step 0.3 and 0.1 s, and 0.2 outside."""
    layers = {"linear_attention": 2.0, "full_attention": 5.0}
    steps = {"linear_attention": 0.3, "full_attention": 0.1}

    def times(recipe: Any, config: Any, kinds: list[str], batch: Any, seconds: float) -> measure._Times:
        return measure._Times(3.0 + sum(layers[kind] for kind in kinds), 0.2 + sum(steps[kind] for kind in kinds))

    monkeypatch.setattr(measure, "_of_layers", times)
    config = find_config(recipe().model.path)
    config.layer_types = ["linear_attention", "linear_attention", "full_attention"]
    step = measure.timed(recipe(), config, WORK)
    assert (step.rest, step.optimizer, step.tokens) == (pytest.approx(3.0), pytest.approx(0.9), 64)
    assert step.micro_batch == pytest.approx(3.0 + 2 * 2.0 + 5.0)


@pytest.mark.parametrize(
    "model", [{}, {"lora": {"rank": 2}}, {"gradient_checkpointing": True}, {"lora": {"rank": 2}, "quantize": "nf4"}]
)
def test_real_layers_are_timed(recipe: Any, model: dict[str, Any]) -> None:
    if "quantize" in model:
        pytest.importorskip("bitsandbytes")
    of = recipe(**model)
    lines = measure.measure(of, find_config(of.model.path), WORK, seconds=0.0)
    assert "linear attention" in lines[0] and "full attention" in lines[0] and "x 1" in lines[0]
    assert "tokens/s" in lines[1] and "the run on one of these" in lines[2]


def test_layers_of_no_known_kind(recipe: Any) -> None:
    config = find_config(recipe().model.path)
    config.layer_types = None
    with pytest.raises(InputError, match="--measure: olmo_hybrid does not say the kinds"):
        measure.timed(recipe(), config, WORK)


def test_what_is_timed_is_what_the_recipe_trains(recipe: Any) -> None:
    """Its optimizer on its weights, its quantised layers, its inputs in the host's memory."""
    pytest.importorskip("bitsandbytes")
    config, kinds = find_config(recipe().model.path), ["linear_attention"]
    muon, small = (changed(recipe(), "train", optimizer=name) for name in ("muon", "adamw_bf16"))
    for of, name, dtype in ((recipe(), "AdamW", torch.float32), (muon, "MuonAdamW", torch.float32)):
        model = measure._model(of, config, kinds)
        assert model.dtype == dtype and type(measure._optimizer(of, model, [*model.parameters()])).__name__ == name
    model = measure._model(small, config, kinds)
    optimizer = measure._optimizer(small, model, [*model.parameters()])
    assert model.dtype == torch.bfloat16 and type(optimizer).__name__ == "AdamWBF16"
    rounded = measure._model(recipe(lora={"rank": 2}, quantize="int8"), config, kinds)
    assert any(parameter.dtype == torch.int8 for parameter in rounded.parameters())
