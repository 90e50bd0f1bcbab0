"""A step that cannot fit the GPU at hand is refused before the weights are read."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from run_helpers import LORA

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.training import memory_check
from hybrid_ft.finetune.training import run as training
from hybrid_ft.finetune.training.memory_check import batch_of, largest_of_pairs


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``gpu_of(free)``: the check believes in a GPU with so many bytes; everything else computes on the CPU."""

    def go(free: int) -> None:
        monkeypatch.setattr(training, "device", _Pretended(free))
        monkeypatch.setattr(memory_check, "device", _Pretended(free))

    return go


class _Pretended:
    def __init__(self, free: int) -> None:
        self.free = free

    def is_gpu(self) -> bool:
        return True

    def name(self) -> str:
        return "NVIDIA H100"

    def memory(self) -> tuple[int, int]:
        return self.free, 80_000_000_000


def test_what_cannot_fit_is_refused_with_its_numbers(start: Any, gpu_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_of(100_000)

    def never(*_: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(models, "load_model", never)
    with pytest.raises(InputError) as refused:
        start()
    assert refused.value.status == ENVIRONMENT
    said = str(refused.value)
    assert said.startswith("NVIDIA H100 has 100 kB of 80.0 GB free, and a step of 4")
    assert "weights" in said and "train.check_memory: false" in said and "\n" not in said


@pytest.mark.parametrize(("free", "train"), [(100_000, {"check_memory": False}), (10**10, {})])
def test_what_fits_or_is_wanted_runs(start: Any, gpu_of: Any, free: int, train: dict[str, Any]) -> None:
    gpu_of(free)
    run = start(train={"steps": 2} | train)
    assert run.status == 0
    (line,) = [line for line in run.screen.splitlines() if line.startswith("memory ")]
    assert "most in the" in line


@pytest.mark.parametrize(("free", "again"), [(10**6, 2), (10**10, 0)])
def test_layers_keep_their_activations_where_memory_is_free(start: Any, gpu_of: Any, free: int, again: int) -> None:
    gpu_of(free)
    model = {"gradient_checkpointing": True, "checkpointed_layers": "auto"}
    run = start(train={"steps": 2, "check_memory": False}, model=model)
    (line,) = [line for line in run.screen.splitlines() if line.startswith("memory ")]
    assert line.endswith(f"; {again} of 2 layers are computed again")


def test_on_a_cpu_what_is_held_is_said(start: Any) -> None:
    assert not device.is_gpu()
    full, lora = (start(output, train={"steps": 1}, **model) for output, model in (("a", {}), ("b", {"model": LORA})))
    held = [
        next(line.split()[1] for line in run.screen.splitlines() if line.startswith("memory ")) for run in (full, lora)
    ]
    assert float(held[0]) > float(held[1]) > 0


def test_the_largest_micro_batch_of_pairs() -> None:
    whole = np.array([100, 200, 300, 400])
    batch = largest_of_pairs(whole, pairs_per_step=2, batch_tokens=1000)
    assert (batch.tokens, batch.several) == (700, False)
    batch = largest_of_pairs(whole, pairs_per_step=4, batch_tokens=500)
    assert (batch.tokens, batch.prompts, batch.several) == (500, 2, True)
    assert largest_of_pairs(whole, pairs_per_step=4, batch_tokens=50).tokens == 400


@pytest.mark.parametrize(("loss", "labelled"), [("dpo", 1000), ("reward", 4)])
def test_a_reward_model_reads_last_tokens_alone(loss: str, labelled: int) -> None:
    """Two of each pair, where DPO's head reads every token."""
    data = {"sources": [{"path": "pairs.jsonl"}], "max_length": 1000}
    recipe = Recipe.model_validate({"model": {"path": "tiny"}, "data": data, "train": {"batch_tokens": 1000}, loss: {}})
    answers = [[0] * 150] * 4
    rows = Dataset.from_dict({"prompt_ids": [[0] * 200] * 4, "chosen_ids": answers, "rejected_ids": answers})
    assert batch_of(recipe, SimpleNamespace(train=rows)).labelled == labelled
