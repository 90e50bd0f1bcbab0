"""``load(weights=False)``: the model that loading gives, but for its values."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of_type

FAST = ("olmo_hybrid", "qwen3_5_moe_text", "zamba2")
KINDS = [
    kind if kind in FAST else pytest.param(kind, marks=pytest.mark.slow) for family in FAMILIES for kind in family.tiny
]


def form(model: Any) -> dict[str, Any]:
    """Everything but values."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    first: dict[int, str] = {}
    return {
        "tensors": [(name, x.shape, x.dtype, x.device, x.requires_grad) for name, x in named],
        "ties": [(name, first.setdefault(id(x), name)) for name, x in named],
        "classes": [(name, type(module).__qualname__, module.training) for name, module in model.named_modules()],
        "state": sorted(model.state_dict()),
        "base": (model.name_or_path, getattr(model, "checkpoint_folder", None)),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_the_values(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = {"vocab_size": 128, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0}
    with warnings.catch_warnings(action="ignore"):
        config = AutoConfig.for_model(kind, **tokens | dict(family_of_type(kind).tiny[kind]))
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        assert form(hybrid_ft.load(tmp_path, dtype=dtype, weights=False)) == form(hybrid_ft.load(tmp_path, dtype=dtype))


def test_reward_models_too(tmp_path: Path) -> None:
    hybrid_ft.load("tiny").save_pretrained(tmp_path)
    with_head, empty = (hybrid_ft.load(tmp_path, scores=True, weights=weights) for weights in (True, False))
    assert form(empty) == form(with_head)


def test_of_a_preset_and_of_random_weights() -> None:
    assert form(hybrid_ft.load("tiny", weights=False)) == form(hybrid_ft.load("tiny"))
    how = {"from_scratch": True, "vocab_size": 192}
    empty, random = (hybrid_ft.load("190M", **how, weights=weights) for weights in (False, True))
    assert [x.shape for x in empty.parameters()] == [x.shape for x in random.parameters()]


def test_files_are_looked_at_all_the_same(tmp_path: Path) -> None:
    hybrid_ft.load("tiny").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="model.safetensors"):
        hybrid_ft.load(tmp_path, weights=False)
