"""Olmo Hybrid: three Gated DeltaNet layers to one of attention without positions."""

from __future__ import annotations

from typing import Any

from torch import nn

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, Released, Step, attention, delta
from hybrid_ft.hybrid_model.families.olmo_hybrid import decoder_layers, names
from hybrid_ft.hybrid_model.layers import norm_and_mlp
from hybrid_ft.hybrid_model.layers.attention import OlmoHybridAttention
from hybrid_ft.hybrid_model.layers.gated_delta_net import OlmoHybridGatedDeltaNet

_OWN: tuple[type[nn.Module], ...] = (
    decoder_layers.OlmoHybridAttentionDecoderLayer,
    decoder_layers.OlmoHybridLinearAttentionDecoderLayer,
    OlmoHybridAttention,
    OlmoHybridGatedDeltaNet,
    norm_and_mlp.OlmoHybridMLP,
    norm_and_mlp.OlmoHybridRMSNorm,
    norm_and_mlp.OlmoHybridRMSNormGated,
)


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    rule = delta(values, config.linear_key_head_dim, config.linear_value_head_dim, keys)
    return [(rule if kind == "linear_attention" else attention(config),) for kind in config.layer_types]


def _repair(raw: dict[str, Any]) -> dict[str, Any]:
    """Rope only where it is asked for by a number.

    transformers turns null and absent into a theta of 10,000; the released weights were trained without rope and say
    so by null.
    """
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise InputError(f"rope_parameters is {rope!r}; must be an object or null")
    if rope.get("rope_theta", raw.get("rope_theta")) is not None:
        return raw
    kept = {key: value for key, value in raw.items() if key not in ("rope_scaling", "rope_theta")}
    return kept | {"rope_parameters": {"rope_theta": None}}


def _misread(config: Config) -> str | None:
    """transformers takes the MLP's activation for the delta layers' convolution too, and here that is SiLU."""
    if config.hidden_act == "silu":
        return None
    return (
        f"hidden_act is {config.hidden_act!r}; must be silu, the only one that the delta layers' convolution has here"
    )


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
    own={cls.__name__: lambda _, cls=cls: cls for cls in _OWN},  # type: ignore[misc]
    remembers=True,
    heads=lambda config: (config.num_attention_heads, config.linear_num_key_heads),
    repair=_repair,
    misread=_misread,
    released=Released(
        shapes=names.released_shapes,
        named=names.released_state_dict,
        joined=names.joined_convolution,
        current=names.current_name,
        counted=names.split_fused,
    ),
    step=Step(
        delta=("q_proj", "k_proj", "v_proj", "g_proj", "a_proj", "b_proj"),
        out="o_proj",
        after=True,
    ),
    # without these vLLM's answers score far lower: a state in 16 bits, graphs and cascade attention lose digits
    serve_flags="--enforce-eager --disable-cascade-attn --mamba_ssm_cache_dtype float32",
    tiny={
        "olmo_hybrid": {
            "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
            "intermediate_size": 96, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 12,
            "linear_value_head_dim": 24, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
            "rope_parameters": {"rope_theta": None},
        }
    },
)  # fmt: skip
