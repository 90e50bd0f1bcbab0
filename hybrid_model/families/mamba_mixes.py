"""Bamba and Zamba2, Mamba-2 beside attention, and Jamba, Mamba-1 beside attention and experts.

transformers' Mamba-1 scan does not start from a given state, so that Jamba cannot fork, nor continue a cache with
several tokens at once.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention, ssd, ssd_heads
from hybrid_ft.hybrid_model.layers.mamba1 import mamba1
from hybrid_ft.hybrid_model.layers.mamba2 import mamba2

_ROUTER = {r"feed_forward\.router": "a router stays as it was trained"}
_CONV = {r"conv1d": "a convolution has no low rank"}
_SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}


def _bamba_mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = ssd(config.mamba_n_heads, config.mamba_d_head, config.mamba_d_state, config.mamba_n_groups)
    return [(scan if kind == "linear_attention" else attention(config),) for kind in config.layers_block_type]


def _zamba_mixings(config: Config) -> list[tuple[Mixing, ...]]:
    heads = config.n_mamba_heads
    scan = ssd(heads, config.mamba_expand * config.hidden_size // heads, config.mamba_d_state, config.mamba_ngroups)
    wide = attention(config, query=config.attention_head_dim, value=config.attention_head_dim)
    return [(scan, wide) if kind == "hybrid" else (scan,) for kind in config.layers_block_type]


def _jamba_mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = Mixing(per_token=6 * config.mamba_expand * config.hidden_size * config.mamba_d_state)
    return [(scan if kind == "linear_attention" else attention(config),) for kind in config.layer_types]


def _lora(config: Config) -> dict[str, str]:
    return {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "recurrent": r"\d+\.mamba\.(in|out)_proj",
        "mlp": r"\d+\.feed_forward\.(gate|up|down)_proj",
    }


def _zamba_lora(config: Config) -> dict[str, str]:
    return {"recurrent": r"\d+\.(mamba_decoder\.)?mamba\.(in|out)_proj"}


BAMBA = Family(
    name="Bamba",
    model_types={"bamba": "BambaForCausalLM"},
    mixings=_bamba_mixings,
    heads=lambda config: ssd_heads(config, config.mamba_n_heads, config.hidden_act),
    lora=_lora,
    refused=_CONV,
    own={"BambaMixer": mamba2},
    float32=("A_log", "dt_bias", ".D"),
    tiny={
        "bamba": _SIZES | {
            "num_key_value_heads": 2, "attn_layer_indices": [1], "mamba_n_heads": 4, "mamba_d_head": 32,
            "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_chunk_size": 16,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        }
    },
)  # fmt: skip
ZAMBA2 = Family(
    name="Zamba2",
    model_types={"zamba2": "Zamba2ForCausalLM"},
    mixings=_zamba_mixings,
    heads=lambda config: ssd_heads(config, config.n_mamba_heads, "silu"),
    lora=_zamba_lora,
    refused=_CONV | {
        r"shared_transformer\.(self_attn|feed_forward)\.\w+_proj$": "several layers share it, and merging would add up",
        r"adapter_list.*": "it is an adapter already", r"\d+\.linear": "it joins two streams"},
    own={"Zamba2MambaMixer": mamba2},
    float32=("A_log", "dt_bias", ".D"),
    tiny={
        "zamba2": _SIZES | {
            "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
            "num_key_value_heads": 4, "mamba_d_state": 16, "n_mamba_heads": 4, "mamba_expand": 2, "mamba_ngroups": 1,
            "chunk_size": 16, "use_mem_rope": True, "num_mem_blocks": 1, "adapter_rank": 8,
        }
    },
)  # fmt: skip
JAMBA = Family(
    name="Jamba",
    model_types={"jamba": "JambaForCausalLM"},
    mixings=_jamba_mixings,
    lora=_lora,
    refused=_ROUTER | _CONV | {r"(x|dt)_proj": "it sets the state's decay and what is read from it"},
    experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
    router=r".*\.feed_forward\.router\..*",
    own={"JambaMambaMixer": mamba1},
    forks=False,
    continues=False,
    float32=("A_log", ".D"),
    tiny={
        "jamba": _SIZES | {
            "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2, "attn_layer_period": 4,
            "attn_layer_offset": 2, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8,
            "mamba_dt_rank": 8,
        }
    },
)  # fmt: skip
FAMILIES = (BAMBA, ZAMBA2, JAMBA)
