"""Granite 4 H: Mamba-2, attention without positions, MLP or experts.

The head's logits are divided by ``logits_scaling``: a loss computed from the head's weight alone would be wrong.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention, scaled, ssd, ssd_heads
from hybrid_ft.hybrid_model.layers.mamba2 import mamba2


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = ssd(config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state, config.mamba_n_groups)
    return [(scan if kind == "linear_attention" else attention(config),) for kind in config.layers_block_type]


FAMILY = Family(
    name="Granite 4 H",
    model_types={"granitemoehybrid": "GraniteMoeHybridForCausalLM"},
    mixings=_mixings,
    heads=lambda config: ssd_heads(config, config.mamba_n_heads, config.hidden_act),
    lora=lambda config: {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "recurrent": r"\d+\.mamba\.(in|out)_proj",
        "mlp": r"\d+\.shared_mlp\.(input|output)_linear",
    },
    refused={r"block_sparse_moe\.router": "a router stays as it was trained", r"conv1d": "a convolution has no low rank"},
    experts=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    router=r".*\.block_sparse_moe\.router\..*",
    own={"GraniteMoeHybridMambaLayer": mamba2},
    float32=("A_log", "dt_bias", ".D"),
    head=scaled(lambda config: 1.0 / config.logits_scaling),
    tiny={
        "granitemoehybrid": {
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 96, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
            "mamba_n_heads": 4, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_head": 32, "mamba_expand": 2,
            "mamba_chunk_size": 16, "attention_multiplier": 0.25, "logits_scaling": 4.0, "residual_multiplier": 0.5,
        }
    },
)  # fmt: skip
