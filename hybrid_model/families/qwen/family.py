"""Qwen3.5 to 3.8 and Qwen3-Next: Gated DeltaNet and gated attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, Step, attention, delta
from hybrid_ft.hybrid_model.families.qwen.layers import gated_delta_net, zero_centred_norm
from hybrid_ft.hybrid_model.layers.norm_and_mlp import gated_mlp


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    rule = delta(values, config.linear_key_head_dim, config.linear_value_head_dim, keys)
    return [(rule if kind == "linear_attention" else attention(config),) for kind in config.layer_types]


def _heads(config: Config) -> tuple[int, ...]:
    silu = config.hidden_act == "silu"  # with another, segments are computed by transformers' own mixer
    return (config.num_attention_heads, config.linear_num_key_heads) if silu else (1,)


def _lora(config: Config) -> dict[str, str]:
    joined = config.model_type == "qwen3_next"
    sets = {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "delta": rf"\d+\.linear_attn\.({'in_proj_qkvz' if joined else 'in_proj_qkv|in_proj_z'}|out_proj)",
    }
    if not joined:
        shared = r"shared_expert\." if getattr(config, "num_experts", None) else ""
        sets["mlp"] = rf"\d+\.mlp\.{shared}(gate|up|down)_proj"
    return sets


_REFUSED = {
    r"in_proj_(a|b|ba)": "it sets the decay and the writing strength of each head, with one output a head",
    r"mlp\.gate$": "a router stays as it was trained",
    r"shared_expert_gate": "it has one output, of which there is no low rank",
    r"conv1d": "a convolution of four weights a channel has no low rank",
}
_STEP = Step(delta=("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"), out="out_proj", gated=True)
_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2
}  # fmt: skip


def _own(prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}GatedDeltaNet": gated_delta_net,
        f"{prefix}RMSNorm": zero_centred_norm,
        f"{prefix}MLP": gated_mlp,
    }


QWEN3_5 = Family(
    name="Qwen3.5, 3.6, 3.8",
    model_types={"qwen3_5_text": "Qwen3_5ForCausalLM"},
    frames={"qwen3_5": "qwen3_5_text"},
    mixings=_mixings,
    heads=_heads,
    lora=_lora,
    refused=_REFUSED,
    own=_own("Qwen3_5"),
    carried=(r"model\.visual\..*", r"mtp\..*"),
    step=_STEP,
    unserved=("qwen3_5_text",),
    tiny={"qwen3_5_text": _SIZES | {"intermediate_size": 96}},
)
QWEN3_5_MOE = Family(
    name="Qwen3.5 MoE",
    model_types={"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"},
    frames={"qwen3_5_moe": "qwen3_5_moe_text"},
    mixings=_mixings,
    heads=_heads,
    lora=_lora,
    refused=_REFUSED,
    experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    router=r".*\.mlp\.gate\..*",
    own=_own("Qwen3_5Moe"),
    carried=(r"model\.visual\..*", r"mtp\..*"),
    step=replace(_STEP, experts=True),
    unserved=("qwen3_5_moe_text",),
    tiny={"qwen3_5_moe_text": _SIZES | _EXPERTS},
)
QWEN3_NEXT = Family(
    name="Qwen3-Next",
    model_types={"qwen3_next": "Qwen3NextForCausalLM"},
    mixings=_mixings,
    heads=_heads,
    lora=_lora,
    refused=_REFUSED | {r"mlp(\.shared_expert\.\w+)?$": "PEFT 0.21 would adapt the routed experts in its place"},
    experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    router=r".*\.mlp\.gate\..*",
    own=_own("Qwen3Next"),
    carried=(r"mtp\..*",),
    step=replace(_STEP, delta=("in_proj_qkvz", "in_proj_ba"), experts=True),
    tiny={"qwen3_next": _SIZES | _EXPERTS | {"intermediate_size": 96}},
)
FAMILIES = (QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT)
