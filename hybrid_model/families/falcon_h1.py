"""Falcon-H1: Mamba-2 beside attention in every layer, with muP multipliers.

One of them, ``lm_head_multiplier``, scales the head's logits.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import (
    PEFT_REFUSES,
    Config,
    Family,
    Mixing,
    attention,
    scaled,
    ssd,
    ssd_heads,
)
from hybrid_ft.hybrid_model.layers.mamba2 import mamba2


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = ssd(config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state, config.mamba_n_groups)
    return [(scan, attention(config))] * config.num_hidden_layers


FAMILY = Family(
    name="Falcon-H1",
    model_types={"falcon_h1": "FalconH1ForCausalLM"},
    mixings=_mixings,
    heads=lambda config: ssd_heads(config, config.mamba_n_heads, config.hidden_act),
    lora=lambda config: {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "recurrent": r"\d+\.mamba\.in_proj",
        "mlp": r"\d+\.feed_forward\.(gate|up|down)_proj",
    },
    refused={r"mamba\.out_proj": PEFT_REFUSES, r"conv1d": "a convolution has no low rank"},
    own={"FalconH1Mixer": mamba2},
    float32=("A_log", "dt_bias", ".D"),
    head=scaled(lambda config: config.lm_head_multiplier),
    tiny={
        "falcon_h1": {
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1,
            "mamba_d_state": 16, "mamba_chunk_size": 16, "lm_head_multiplier": 0.5,
        }
    },
)  # fmt: skip
