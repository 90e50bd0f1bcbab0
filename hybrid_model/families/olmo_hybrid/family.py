"""Olmo Hybrid: three Gated DeltaNet layers to one of attention without positions."""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention, delta


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    rule = delta(config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    return [(rule if kind == "linear_attention" else attention(config),) for kind in config.layer_types]


FAMILY = Family(
    name="Olmo Hybrid",
    model_types={"olmo_hybrid": "OlmoHybridForCausalLM"},
    mixings=_mixings,
    lora=lambda config: {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "delta": r"\d+\.linear_attn\.(q|k|v|g|o)_proj",
        "mlp": r"\d+\.mlp\.(gate|up|down)_proj",
    },
    refused={
        r"linear_attn\.(a|b)_proj": "it sets the decay and the writing strength of each head, with one output a head",
        r"conv1d": "a convolution of four weights a channel has no low rank",
    },
    tiny={
        "olmo_hybrid": {
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
            "intermediate_size": 96, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 12,
            "linear_value_head_dim": 24, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
            "rope_parameters": {"rope_theta": None},
        }
    },
)  # fmt: skip
