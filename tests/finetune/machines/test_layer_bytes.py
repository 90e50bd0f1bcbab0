"""Kinds of layers as a config says them, beside the modules that are made of it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from shapes import cut, shape
from transformers import AutoModelForCausalLM

from hybrid_ft.finetune.machines import layer_bytes
from hybrid_ft.hybrid_model.families.known import family_of


@pytest.mark.parametrize(
    ("preset", "changed"),
    [
        ("7B", {}),
        ("Olmo-2-1B", {}),
        ("Olmo-3-7B", {}),
        ("Qwen3.5-9B", {}),
        ("Qwen3.5-35B-A3B", {}),
        ("Qwen3-Next-80B-A3B", {}),
        ("Qwen3-Next-80B-A3B", {"mlp_only_layers": [1, 3]}),
        ("Qwen3-Next-80B-A3B", {"decoder_sparse_step": 2}),
    ],
    ids=str,
)
def test_layers_are_what_transformers_makes_of_the_config(preset: str, changed: dict[str, Any]) -> None:
    config = cut(preset, 4)
    for name, value in changed.items():
        setattr(config, name, value)
    with torch.device("meta"):
        layers = AutoModelForCausalLM.from_config(config).model.layers
    step = family_of(config).step
    for number, layer in enumerate(layers):
        named = dict(layer.named_parameters())
        experts = sum(x.numel() for name, x in named.items() if ".experts." in name)
        assert layer_bytes.experts_of(config, step, number) == experts
        assert layer_bytes.attends(config, number) == hasattr(layer, "self_attn")
        if hasattr(layer, "self_attn"):
            gate = 2 if step is not None and step.gated else 1
            assert layer_bytes.queries_of(config) * gate == layer.self_attn.q_proj.out_features
            values = (layer.self_attn.k_proj, layer.self_attn.v_proj)
            assert layer_bytes.keys_of(config, 2) == 2 * sum(one.out_features for one in values)


def test_a_layer_without_experts_keeps_what_an_mlp_keeps() -> None:
    config = cut("Qwen3-Next-80B-A3B", 2)
    config.mlp_only_layers = [0]
    step = family_of(config).step
    assert step is not None
    plain = layer_bytes.of_mlp(config, replace(step, experts=False), 0, {}, False, False, 2)
    assert (
        layer_bytes.of_mlp(config, step, 0, {}, False, False, 2)
        == plain
        != layer_bytes.of_mlp(config, step, 1, {}, False, False, 2)
    )


def test_more_experts_a_token_keep_more_of_it() -> None:
    config = cut("Qwen3.5-35B-A3B", 1)
    few = shape(config, lora=4).layers[0].kept
    config.num_experts_per_tok += 1
    # what an expert gave, its gate and up, the gate's SiLU, and four whole numbers
    assert shape(config, lora=4).layers[0].kept - few == 2 * (2048 + 3 * 512) + 32


def test_a_model_without_delta_layers_has_no_state() -> None:
    assert layer_bytes.state(cut("Olmo-3-7B", 4)) == 0
    assert layer_bytes.state(cut("7B", 4)) == 30 * 96 * 192
