"""llama.cpp's architectures around Mamba-2: Granite 4 H, Bamba, Falcon-H1."""

from __future__ import annotations

from typing import Any

import torch

Config = Any
Writer = Any
Tensors = list[tuple[str, torch.Tensor]]


def mamba2_tensor(name: str, tensor: torch.Tensor, groups: int) -> tuple[str, torch.Tensor]:
    """A mixer's tensor: ``A_log`` as the rate itself, rates and skips one a row, the norm by groups of channels."""
    if name.endswith(".A_log"):
        return name, -tensor.exp()[:, None]
    if name.endswith((".mamba.D", ".mixer.D")):
        return name, tensor[:, None]
    if name.endswith(".dt_bias"):
        return f"{name.removesuffix('dt_bias')}dt_proj.bias", tensor
    if name.endswith((".mamba.norm.weight", ".mixer.norm.weight")):
        return name, tensor.view(groups, -1)
    return name, tensor.squeeze(1) if name.endswith("conv1d.weight") else tensor


def _mamba2_settings(writer: Writer, config: Config, width: int) -> None:
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_group_count(config.mamba_n_groups)
    writer.add_ssm_time_step_rank(config.mamba_n_heads)
    writer.add_ssm_inner_size(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _beside_attention(writer: Writer, config: Config) -> None:
    """Mamba-2 in some layers and attention in the others."""
    _mamba2_settings(writer, config, config.mamba_n_heads * config.mamba_d_head)
    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if here else 0 for here in attends])


def granite_settings(writer: Writer, config: Config) -> None:
    _beside_attention(writer, config)
    experts = config.num_local_experts
    writer.add_feed_forward_length(config.intermediate_size if experts else config.shared_intermediate_size)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)
    writer.add_rope_scaling_finetuned(False)


def granite_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """Gate and up are one tensor in the file and two in llama.cpp; beside experts the shared MLP has
    names of its own."""
    block = f"blk.{name.split('.')[2]}.ffn" if name.startswith("model.layers.") else ""
    if name.endswith("block_sparse_moe.input_linear.weight"):
        gate, up = tensor.chunk(2, dim=-2)
        return [(f"{block}_gate_exps.weight", gate), (f"{block}_up_exps.weight", up)]
    ending = "_shexp.weight" if config.num_local_experts else ".weight"
    if name.endswith("shared_mlp.input_linear.weight"):
        gate, up = tensor.chunk(2, dim=-2)
        return [(f"{block}_gate{ending}", gate), (f"{block}_up{ending}", up)]
    if name.endswith("shared_mlp.output_linear.weight"):
        return [(f"{block}_down{ending}", tensor)]
    return [mamba2_tensor(name, tensor, config.mamba_n_groups)]


def granite_refused(config: Config) -> str | None:
    if config.position_embedding_type == "rope":
        return "position_embedding_type is rope; llama.cpp's Granite 4 H has no positions"
    if "linear_attention" not in config.layer_types:
        return "it has no Mamba layer; llama.cpp keeps such a model as another architecture"
    return None


def bamba_settings(writer: Writer, config: Config) -> None:
    _beside_attention(writer, config)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(_turned(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_rope_scaling_finetuned(True)


def _turned(config: Config) -> int:
    """How many of a head's numbers are turned by their position."""
    return int(_head(config) * config.rope_parameters.get("partial_rotary_factor", 1.0))


def _head(config: Config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def bamba_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """This architecture turns neighbours, transformers the first half with the second: queries
    and keys change places."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        rows, turned = tensor.view(heads, -1, tensor.shape[1]), _turned(config)
        pairs = rows[:, :turned].unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return [(name, torch.cat([pairs, rows[:, turned:]], dim=1).flatten(0, 1))]
    return [mamba2_tensor(name, tensor, config.mamba_n_groups)]


def falcon_settings(writer: Writer, config: Config) -> None:
    _mamba2_settings(writer, config, config.mamba_d_ssm)
    writer.add_head_count_kv(config.num_key_value_heads)
    head = _head(config)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))


def falcon_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """llama.cpp has none of its multipliers: they go into the weights, and a tied head becomes one of its own."""
    name, tensor = mamba2_tensor(name, tensor, config.mamba_n_groups)
    part = name.removesuffix(".weight").rsplit(".", 1)[-1]
    if part == "embed_tokens":
        head = [("lm_head.weight", tensor * config.lm_head_multiplier)] if config.tie_word_embeddings else []
        return [(name, tensor * config.embedding_multiplier), *head]
    if part == "in_proj" and name.endswith("weight"):
        inner, state = config.mamba_d_ssm, config.mamba_n_groups * config.mamba_d_state
        widths = [inner, inner, state, state, config.mamba_n_heads]
        scales = torch.tensor(config.ssm_multipliers).repeat_interleave(torch.tensor(widths))
        return [(name, tensor * config.ssm_in_multiplier * scales[:, None])]
    scale = {
        "q_proj": config.attention_in_multiplier,
        "k_proj": config.attention_in_multiplier * config.key_multiplier,
        "v_proj": config.attention_in_multiplier,
        "o_proj": config.attention_out_multiplier,
        "out_proj": config.ssm_out_multiplier,
        "gate_proj": config.mlp_multipliers[0],
        "down_proj": config.mlp_multipliers[1],
        "lm_head": config.lm_head_multiplier,
    }
    return [(name, tensor * scale.get(part, 1.0))]


def falcon_refused(config: Config) -> str | None:
    if config.mamba_rms_norm and config.mamba_norm_before_gate:
        return "mamba_norm_before_gate is true; llama.cpp norms after the gate"
    if config.attention_bias or config.mlp_bias or config.projectors_bias or config.mamba_proj_bias:
        return "it has biases, which multipliers would have to enter"
    return None
