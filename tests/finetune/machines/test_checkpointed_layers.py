"""As many layers as fit keep their activations, attention's first; what plan and a run choose is one function's."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, OlmoHybridForCausalLM, Qwen3Config

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.checkpointed_layers import fits, left_out
from hybrid_ft.finetune.machines.memory import Batch, peak
from hybrid_ft.finetune.machines.shape import shape_of
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat

BATCH = Batch(32768, 16384, several=False)
ATTENTION = {number for number in range(32) if number % 4 == 3}


@pytest.fixture(scope="module")
def shape() -> Any:
    config = preset_config("7B")
    with torch.device("meta"):
        return shape_of(lay_flat(OlmoHybridForCausalLM(config)), config, True)


def recipe(layers: Any, checkpointing: Any = True) -> Any:
    model = SimpleNamespace(checkpointed_layers=layers, gradient_checkpointing=checkpointing)
    return SimpleNamespace(model=model, train=SimpleNamespace(sharded=False))


def test_as_many_as_fit(shape: Any) -> None:
    """One more would not, and with more room there are more; attention's go first."""
    sizes = []
    for room in (100e9, 150e9, 190e9, 260e9, 500e9):
        kept = left_out(recipe("auto"), shape, BATCH, 1, room)
        assert not kept or fits(peak(shape, BATCH, left_out=kept).total, room)
        more = left_out(recipe(31 - len(kept)), shape, BATCH, 1, 0) if len(kept) < 32 else None
        assert more is None or (kept < more and not fits(peak(shape, BATCH, left_out=more).total, room))
        assert kept <= ATTENTION or kept >= ATTENTION
        sizes.append(len(kept))
    assert sizes[0] == 0 and sizes[-1] == 32 and 0 < sizes[2] and sizes == sorted(sizes)


def test_a_number_is_taken_at_its_word(shape: Any) -> None:
    assert left_out(recipe(24), shape, BATCH, 1, 0) == ATTENTION
    assert left_out(recipe(23), shape, BATCH, 1, 0) == ATTENTION | {30}
    assert left_out(recipe(0), shape, BATCH, 1, 0) == set(range(32))
    assert left_out(recipe(32), shape, BATCH, 1, 0) == left_out(recipe(None), shape, BATCH, 1, 1e12) == set()
    assert left_out(recipe("auto", False), shape, BATCH, 1, 1e12) == set()


def test_what_cannot_be_is_one_line(shape: Any) -> None:
    with pytest.raises(
        InputError, match=r"checkpointed_layers: got 33; the model has 32 layers, so it must be at most"
    ):
        left_out(recipe(33), shape, BATCH, 1, 0)
    config = Qwen3Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=64, head_dim=16)
    with torch.device("meta"):
        other = shape_of(AutoModelForCausalLM.from_config(config), config, True)
    with pytest.raises(InputError, match="auto must be a number here"):
        left_out(recipe("auto"), other, BATCH, 1, 1e12)
    assert left_out(recipe(1), other, BATCH, 1, 0) == {1, 2}
