"""llama.cpp's architectures: their settings, and tensors as they want them.

Each is described as llama.cpp reads it; names come from the gguf package's own map. What was tried with llama.cpp
itself, logits against transformers', stands in docs/results.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from hybrid_ft.finetune.conversion.gguf import experts, kimi, mamba2
from hybrid_ft.finetune.conversion.gguf.mamba2 import Config, Tensors, Writer


@dataclass(frozen=True)
class Architecture:
    """``name`` in gguf's MODEL_ARCH; ``settings`` writes what is its own; ``tensor`` gives a checkpoint's tensor, by
    its name, other names and forms; ``refused`` says of a config why llama.cpp would compute another model."""

    name: str
    settings: Callable[[Writer, Config], None]
    tensor: Callable[[str, torch.Tensor, Config], Tensors]
    refused: Callable[[Config], str | None] = lambda config: None


def common_settings(writer: Writer, config: Config) -> None:
    """Of every model."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)


def _rope_theta(config: Config) -> float:
    return float((config.rope_parameters or {}).get("rope_theta") or 10_000.0)


def _lfm2_settings(writer: Writer, config: Config) -> None:
    _short_convolutions(writer, config)
    width = config.intermediate_size
    if config.block_auto_adjust_ff_dim:
        width = int(config.block_ffn_dim_multiplier * int(2 * width / 3))
        width = -(-width // config.block_multiple_of) * config.block_multiple_of
    writer.add_feed_forward_length(width)


def _short_convolutions(writer: Writer, config: Config) -> None:
    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if here else 0 for here in attends])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _lfm2_moe_settings(writer: Writer, config: Config) -> None:
    _short_convolutions(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    experts.lfm2_settings(writer, config)


def _lfm2_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    if name.endswith("expert_bias"):
        return [(f"{name}.bias", tensor)]
    return [(name, tensor.squeeze(1) if name.endswith("conv.conv.weight") else tensor)]


def _olmo_rope(config: Config) -> dict[str, Any]:
    """Of the layers that see all; those with a window turn by the same base, never stretched."""
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def _olmo_settings(writer: Writer, config: Config) -> None:
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)
    rope = _olmo_rope(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "yarn":
        from gguf import RopeScalingType

        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    kinds = getattr(config, "layer_types", None) or []
    if "sliding_attention" in kinds:
        writer.add_sliding_window(config.sliding_window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in kinds])


def _olmo_refused(config: Config) -> str | None:
    rope = _olmo_rope(config)
    window = config.rope_parameters.get("sliding_attention", rope)
    if window["rope_theta"] != rope["rope_theta"] or (window is not rope and window["rope_type"] != "default"):
        return "its layers with a window turn otherwise than llama.cpp's, by another base or stretched"
    if rope["rope_type"] not in ("default", "yarn"):
        return f"rope_type is {rope['rope_type']}; default and yarn are written"
    if rope["rope_type"] == "yarn":
        usual = {"beta_fast": 32, "beta_slow": 1, "attention_factor": 0.1 * math.log(rope["factor"]) + 1}
        for key, value in usual.items():
            if rope.get(key) is not None and abs(rope[key] - value) > 1e-4:
                return f"rope_parameters.{key} is {rope[key]}; llama.cpp takes {value:g}"
    return None


def _qwen_settings(writer: Writer, config: Config) -> None:
    _delta_rule(writer, config)
    # text has one position; llama.cpp turns the pairs that these sections take by it, and leaves others as they are
    pairs = _turned(config) // 2
    writer.add_rope_dimension_sections([(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0])
    if config.model_type == "qwen3_5_text":
        writer.add_feed_forward_length(config.intermediate_size)
    else:
        experts.shared_expert_settings(writer, config)


def _next_settings(writer: Writer, config: Config) -> None:
    _delta_rule(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    experts.shared_expert_settings(writer, config)


def _turned(config: Config) -> int:
    """How many of a head's numbers are turned by their position."""
    return int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 0.25))


def _delta_rule(writer: Writer, config: Config) -> None:
    """Qwen's gated delta rule in some layers and gated attention in the others."""
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_turned(config))
    writer.add_rope_freq_base(_rope_theta(config))
    writer.add_full_attention_interval(_interval(config))
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_num_value_heads * config.linear_value_head_dim)


def _interval(config: Config) -> int:
    """Every which layer is attention."""
    kinds = config.layer_types
    return kinds.index("full_attention") + 1 if "full_attention" in kinds else len(kinds) + 1


def _qwen_refused(config: Config) -> str | None:
    every = _interval(config)
    for number, kind in enumerate(config.layer_types, start=1):
        if (kind == "full_attention") != (number % every == 0):
            return f"layer_types is not attention once in {every} layers, and llama.cpp reads no other order"
    if config.linear_key_head_dim != config.linear_value_head_dim:
        return "linear_key_head_dim and linear_value_head_dim differ; llama.cpp has one size for both"
    if (config.rope_parameters or {}).get("rope_type", "default") != "default":
        return f"rope_type is {config.rope_parameters['rope_type']}; default alone is written"
    return experts.next_refused(config) if config.model_type == "qwen3_next" else None


def _qwen_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    return [_qwen_one(name, experts.shared_expert_tensor(name, tensor), config)]


def _qwen_one(name: str, tensor: torch.Tensor, config: Config) -> tuple[str, torch.Tensor]:
    """Norms of the residual stream hold 1 + weight, ``A_log`` the rate itself. A key head serves every H-th value head
    and not HV / H in a row, so that value heads change places."""
    part = name.partition(".linear_attn.")[2]
    if not part:
        return name, tensor + 1 if name.endswith("norm.weight") else tensor
    H, HV = config.linear_num_key_heads, config.linear_num_value_heads
    K, V = config.linear_key_head_dim, config.linear_value_head_dim
    if part in ("in_proj_z.weight",):
        return name, tiled(tensor, H, V)
    if part in ("in_proj_a.weight", "in_proj_b.weight"):
        return name, tiled(tensor, H, 1)
    if part == "in_proj_qkv.weight":
        return name, torch.cat([tensor[: 2 * H * K], tiled(tensor[2 * H * K :], H, V)])
    if part == "conv1d.weight":
        tensor = tensor.squeeze(1)
        return name, torch.cat([tensor[: 2 * H * K], tiled(tensor[2 * H * K :], H, V)])
    if part == "out_proj.weight":
        return name, tiled(tensor.T, H, V).T
    if part == "A_log":
        return name, -tiled(tensor, H, 1).exp()
    if part == "dt_bias":
        return f"{name.removesuffix('dt_bias')}dt_proj.bias", tiled(tensor, H, 1)
    assert part == "norm.weight" and HV % H == 0, name
    return name, tensor


def tiled(tensor: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """Rows of ``groups`` x n heads of ``size`` each, a group's heads in a row, so that the first of every group come
    first."""
    heads = tensor.reshape(groups, -1, size, *tensor.shape[1:])
    return heads.transpose(0, 1).reshape(tensor.shape)


_NEMOTRON = (experts.nemotron_settings, experts.nemotron_tensor, experts.nemotron_refused)

ARCHITECTURES = {
    "lfm2": Architecture("LFM2", _lfm2_settings, _lfm2_tensor),
    "lfm2_moe": Architecture("LFM2MOE", _lfm2_moe_settings, _lfm2_tensor, experts.lfm2_refused),
    "qwen3_5_text": Architecture("QWEN35", _qwen_settings, _qwen_tensor, _qwen_refused),
    "qwen3_5_moe_text": Architecture("QWEN35MOE", _qwen_settings, _qwen_tensor, _qwen_refused),
    "qwen3_next": Architecture("QWEN3NEXT", _next_settings, experts.next_tensor, _qwen_refused),
    "olmo2": Architecture("OLMO2", _olmo_settings, lambda name, tensor, config: [(name, tensor)], _olmo_refused),
    "olmo3": Architecture("OLMO2", _olmo_settings, lambda name, tensor, config: [(name, tensor)], _olmo_refused),
    "granitemoehybrid": Architecture(
        "GRANITE_HYBRID", mamba2.granite_settings, mamba2.granite_tensor, mamba2.granite_refused
    ),
    "bamba": Architecture("GRANITE_HYBRID", mamba2.bamba_settings, mamba2.bamba_tensor),
    "falcon_h1": Architecture("FALCON_H1", mamba2.falcon_settings, mamba2.falcon_tensor, mamba2.falcon_refused),
    "nemotron_h": Architecture("NEMOTRON_H", *_NEMOTRON),
    "kimi_linear": Architecture("KIMI_LINEAR", kimi.kimi_settings, kimi.kimi_tensor, kimi.kimi_refused),
    "jamba": Architecture("JAMBA", experts.jamba_settings, experts.jamba_tensor, experts.jamba_refused),
}
"""By the ``model_type`` of the text model."""

_NEMOTRON_MOE = Architecture("NEMOTRON_H_MOE", *_NEMOTRON)


def architecture_of(config: Config) -> Architecture | None:
    """None: llama.cpp has none, or it is not written here."""
    if config.model_type == "nemotron_h" and "moe" in config.layer_types:
        return _NEMOTRON_MOE
    return ARCHITECTURES.get(config.model_type)
