import pytest
import torch
from transformers import OlmoHybridForCausalLM

from hybrid_ft.hybrid_model.families.olmo_hybrid.names import released_shapes
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import PRESETS, preset_config
from hybrid_ft.hybrid_model.flops import forward_flops
from hybrid_ft.hybrid_model.lay_flat import lay_flat

# Olmo Hybrid 7B as released: 24 delta layers of 18 tensors, 8 of attention of 11, embedding, norm and head
RELEASED = (
    {
        f"model.layers.{i}.{name}"
        for i in range(32)
        if i % 4 != 3
        for name in (
            *(f"linear_attn.{part}_proj.weight" for part in "qkvabgo"),
            *(f"linear_attn.{part}_conv1d.weight" for part in "qkv"),
            "linear_attn.o_norm.weight",
            "linear_attn.A_log",
            "linear_attn.dt_bias",
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        )
    }
    | {
        f"model.layers.{i}.{name}"
        for i in range(3, 32, 4)
        for name in (
            *(f"self_attn.{part}_proj.weight" for part in "qkvo"),
            "self_attn.q_norm.weight",
            "self_attn.k_norm.weight",
            "post_attention_layernorm.weight",
            "post_feedforward_layernorm.weight",
            *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
        )
    }
    | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
)


def meta(name):
    with torch.device("meta"):
        return lay_flat(OlmoHybridForCausalLM(preset_config(name)))


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_7B_is_the_released_model():
    model = meta("7B")
    assert parameters(model) == 7_430_870_688
    shapes = released_shapes(model.config)
    assert len(RELEASED) == 523
    assert shapes.keys() == RELEASED
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 7_430_870_688
    assert shapes["model.layers.0.linear_attn.v_conv1d.weight"] == (5760, 1, 4)


def test_a_changed_config_has_other_shapes():
    config = preset_config("tiny")
    before = released_shapes(config)
    released_shapes(config).clear()  # what is handed out is a copy
    config.vocab_size += 1
    assert released_shapes(config)["model.embed_tokens.weight"][0] == before["model.embed_tokens.weight"][0] + 1
    config.vocab_size -= 1
    assert released_shapes(config) == before != {}


@pytest.mark.parametrize(("name", "low", "high"), [("tiny", 0, 5e6), ("190M", 1.85e8, 1.95e8), ("1B", 0.9e9, 1.1e9)])
def test_sizes(name, low, high):
    assert low < parameters(meta(name)) < high


@pytest.mark.parametrize("name", PRESETS)
def test_no_rope_and_olmo_proportions(name):
    model = meta(name)
    config = model.config
    assert model.model.rotary_emb is None
    assert config.layer_types == (["linear_attention"] * 3 + ["full_attention"]) * (config.num_hidden_layers // 4)
    assert config.linear_key_head_dim * config.linear_num_key_heads == 0.75 * config.hidden_size
    assert config.linear_value_head_dim == 2 * config.linear_key_head_dim
    with torch.device("meta"):
        plain = OlmoHybridForCausalLM(preset_config(name))
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}


def test_flops_of_weights_are_twice_the_parameters_of_the_products():
    config = preset_config("7B")
    shapes = released_shapes(config)
    products = sum(
        torch.Size(shape).numel() for name, shape in shapes.items() if name.endswith(("proj.weight", "conv1d.weight"))
    )
    flops = forward_flops(config, [7, 5])
    assert flops.weights == 2 * 12 * products
    assert flops.head == 2 * 12 * 3840 * 100352
    assert flops.delta_rule == 24 * 12 * 30 * 6 * 96 * 192
    # scores and values, 2 operations each, for every query and key pair of a head
    assert flops.attention == 8 * 30 * 128 * 4 * (7 * 8 // 2 + 5 * 6 // 2)
    assert forward_flops(config, [7, 5], head_tokens=2).head == flops.head / 6
