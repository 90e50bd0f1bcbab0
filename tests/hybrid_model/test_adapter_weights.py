"""Adapters whose start takes a part of the base, and modules trained whole: as they train, merge and open elsewhere."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapter_weights import as_plain_lora, merged
from hybrid_ft.hybrid_model.adapters import FROM_THE_BASE, add_lora

TOKENS = torch.randint(1, 61, (1, 40), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> torch.Tensor:
    return model.eval()(TOKENS, use_cache=False).logits.detach()


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def step(model: Any) -> dict[str, torch.nn.Parameter]:
    """Move whatever is trained by its gradient, which must not be zero, twice: B may begin at zero, and
    A's is zero then."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for number in range(2):
        model.zero_grad()
        model.train()(TOKENS, use_cache=False).logits.square().mean().backward()
        for name, parameter in trained.items():
            assert parameter.grad is not None, name
            assert parameter.grad.norm() > 0 or (number == 0 and "lora_A" in name), name
            with torch.no_grad():
                parameter += 0.05 * (parameter.abs().mean() + 0.01) * parameter.grad.sign()
    return trained


def saved(model: PeftModel, folder: Path) -> None:
    tensors, config = as_plain_lora(model, get_peft_model_state_dict(model), model.peft_config["default"])
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))


KINDS: dict[str, dict[str, Any]] = {
    **{init: {"init": init} for init in ("gaussian", "orthogonal", *FROM_THE_BASE)},
    "pissa and rslora": {"init": "pissa", "rslora": True},
    "pissa and dora": {"init": "pissa", "dora": True},
    "own modules": {"modules": ["self_attn.q_proj", r"mlp\.(up|down)_proj"]},
    "own modules of layers": {"modules": ["o_proj"], "layers": [0, 1]},
    "whole modules": {"modules_to_save": ["model.norm", "embed_tokens", "lm_head", "layers.0.linear_attn.conv1d"]},
    "whole norms": {"modules_to_save": ["(q|k|post_attention_layer|input_layer|post_feedforward_layer|o_)_?norm"]},
    "whole projections": {"modules": ["mlp.*"], "modules_to_save": ["linear_attn.a_proj", "layers.1.self_attn.v_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_train_merge_and_open_in_plain_peft(make_pair: Any, tmp_path: Path, kind: str) -> None:
    plain, base = make_pair(seed=1)
    before = logits(base)
    model = add_lora(base, rank=4, alpha=8, **KINDS[kind])
    assert relative(logits(model), before) < 1e-5
    trained = step(model)
    expected = logits(model)
    assert relative(expected, before) > 1e-3
    saved(model, tmp_path)
    assert relative(logits(PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)), expected) < 1e-5
    assert relative(logits(merged(model)), expected) < 1e-5
    whole = {re.sub(r"\.modules_to_save\.default", "", name) for name in trained if "modules_to_save" in name}
    assert len(whole) == {"whole modules": 4, "whole norms": 10, "whole projections": 3}.get(kind, 0)
    if "modules" in KINDS[kind]:
        adapted = {re.search(r"layers\.(.*)\.lora_", name)[1] for name in trained if "lora_" in name}
        assert len(adapted) == {"own modules": 7, "own modules of layers": 2, "whole projections": 9}[kind]


def test_a_tied_head_follows_its_embedding(make_pair: Any, tmp_path: Path) -> None:
    plain, base = make_pair(seed=1, tie_word_embeddings=True)
    model = add_lora(base, rank=4, alpha=8, modules_to_save=["embed_tokens"])
    step(model)
    expected = logits(model)
    assert torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    saved(model, tmp_path)
    assert relative(logits(PeftModel.from_pretrained(plain, tmp_path)), expected) < 1e-5
    folded = merged(model)
    assert folded.lm_head.weight is folded.model.embed_tokens.weight
    assert relative(logits(folded), expected) < 1e-5


def test_what_is_trained_is_float32_and_what_is_merged_its_base_s(make_pair: Any) -> None:
    base = make_pair(seed=1, dtype=torch.bfloat16)[1]
    names = {name: parameter.dtype for name, parameter in base.named_parameters()}
    model = add_lora(base, rank=4, alpha=8, modules_to_save=["model.norm", "lm_head"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    assert {name: parameter.dtype for name, parameter in merged(model).named_parameters()} == names


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"modules": ["proj_q"]},
            "model.lora.modules: 'proj_q' names no module with a weight; such are .*self_attn.q_proj",
        ),
        (
            {"modules": ["mlp.*", ".*_proj"]},
            r"'\.\*_proj' names model.layers.\d+.linear_attn.a_proj.*it sets the decay",
        ),
        ({"modules": ["conv1d"]}, "conv1d, which cannot be adapted: a convolution of four weights"),
        ({"modules": ["lm_head"]}, "names lm_head, which cannot be adapted: head and embedding are not layers"),
        ({"modules": ["model.norm"]}, "model.norm, which cannot be adapted: it is not a matrix; train it whole with"),
        ({"modules_to_save": ["mlp"]}, "model.lora.modules_to_save: 'mlp' names no module with a weight"),
        ({"modules_to_save": ["mlp.up_proj"]}, "mlp.up_proj, which is adapted; it can be one of the two"),
        ({"rank": 64, "init": "pissa"}, r"model.lora.rank: got 64; .* of model.layers.0.mlp.gate_proj is \[\d+, "),
    ],
)
def test_what_cannot_be_is_refused_by_name(make_pair: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_lora(make_pair()[1], **more)


def test_a_tied_head_is_refused_by_its_own_name(make_pair: Any) -> None:
    with pytest.raises(InputError, match="names lm_head, which is the embedding in this model.*; name embed_tokens"):
        add_lora(make_pair(tie_word_embeddings=True)[1], modules_to_save=["lm_head"])
