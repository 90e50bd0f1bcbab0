"""llama.cpp's architectures with experts: Qwen3-Next, Qwen3.5 MoE, LFM2 MoE, Nemotron-H, Jamba."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from hybrid_ft.finetune.conversion.gguf.mamba2 import Config, Tensors, Writer, mamba2_tensor
from hybrid_ft.hybrid_model.checkpoint.tensor_files import StoredTensor

_ONE_EXPERT = re.compile(r"(.*)\.experts\.(\d+)\.(\w+)\.weight")
_PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


def read_tensors(stored: dict[str, StoredTensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 values of each tensor; the experts of a layer are one [E, ...], under a name that
    all families share, ``model.layers.N.mlp.experts.gate_proj.weight``."""
    for name, tensor in stored.items():
        found = _ONE_EXPERT.fullmatch(name)
        if found is None:
            if name.endswith(".experts.gate_up_proj"):
                gate, up = tensor.read().float().chunk(2, dim=1)
                yield _joined(name, "gate_proj"), gate
                yield _joined(name, "up_proj"), up
            elif name.endswith(".experts.down_proj"):
                yield _joined(name, "down_proj"), tensor.read().float()
            else:
                yield name, tensor.read().float()
        elif found[2] == "0":
            of = [stored[one] for one in _names_of(found, stored)]
            yield _joined(name, _PARTS.get(found[3], found[3])), torch.stack([one.read().float() for one in of])


def _joined(name: str, part: str) -> str:
    number = name.partition(".layers.")[2].partition(".")[0]
    return f"model.layers.{number}.mlp.experts.{part}.weight"


def _names_of(first: re.Match[str], stored: dict[str, StoredTensor]) -> Iterator[str]:
    number = 0
    while (name := f"{first[1]}.experts.{number}.{first[3]}.weight") in stored:
        yield name
        number += 1


def shared_expert_settings(writer: Writer, config: Config) -> None:
    """Of Qwen's layers, all of which have experts and one that every token goes through."""
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def shared_expert_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The gate of the shared expert is one vector."""
    return tensor.squeeze(0) if name.endswith("shared_expert_gate.weight") else tensor


def next_refused(config: Config) -> str | None:
    """What Qwen3-Next alone may have otherwise."""
    if config.mlp_only_layers or config.decoder_sparse_step != 1:
        return "some of its layers have no experts; llama.cpp wants them in all"
    if not config.norm_topk_prob:
        return "norm_topk_prob is false; llama.cpp's weights of the chosen experts add up to 1"
    return None


def next_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """Queries, keys, values and gates lie together by key head in the file, each by itself in llama.cpp. Value heads
    stay in a row by their key head."""
    tensor = shared_expert_tensor(name, tensor)
    before, _, part = name.partition(".linear_attn.")
    if not part:
        return [(name, tensor + 1 if name.endswith("norm.weight") else tensor)]
    if part == "in_proj_qkvz.weight":
        H, K = config.linear_num_key_heads, config.linear_key_head_dim
        values = config.linear_num_value_heads // H * config.linear_value_head_dim
        parts = tensor.view(H, -1, tensor.shape[-1]).split([K, K, values, values], dim=1)
        q, k, v, z = (each.flatten(0, 1) for each in parts)
        return [
            (f"{before}.linear_attn.in_proj_qkv.weight", torch.cat([q, k, v])),
            (f"{before}.linear_attn.in_proj_z.weight", z),
        ]
    if part == "A_log":
        return [(name, -tensor.exp())]
    if part == "dt_bias":
        return [(f"{name.removesuffix('dt_bias')}dt_proj.bias", tensor)]
    return [(name, tensor.squeeze(1) if part == "conv1d.weight" else tensor)]


def lfm2_settings(writer: Writer, config: Config) -> None:
    """What comes to LFM2's."""
    from gguf import ExpertGatingFuncType

    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_leading_dense_block_count(config.num_dense_layers)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def lfm2_refused(config: Config) -> str | None:
    if not config.norm_topk_prob or not config.use_expert_bias or config.routed_scaling_factor != 1:
        return "llama.cpp routes with norm_topk_prob and use_expert_bias true and routed_scaling_factor 1"
    return None


def nemotron_settings(writer: Writer, config: Config) -> None:
    """A layer is a mixer or an MLP: one without keys and width is recurrent."""
    kinds = config.layer_types
    writer.add_head_count_kv([config.num_key_value_heads if kind == "full_attention" else 0 for kind in kinds])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_state_size(config.ssm_state_size)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_ssm_time_step_rank(config.mamba_num_heads)
    writer.add_ssm_inner_size(config.mamba_num_heads * config.mamba_head_dim)
    experts = "moe" in kinds
    width = config.moe_intermediate_size if experts else config.intermediate_size
    writer.add_feed_forward_length([width if kind in ("mlp", "moe") else 0 for kind in kinds])
    if experts:
        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(width)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
        writer.add_expert_weights_norm(config.norm_topk_prob)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        if config.moe_latent_size is not None:
            writer.add_moe_latent_size(config.moe_latent_size)


def nemotron_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    if name.endswith("e_score_correction_bias"):
        return [(f"{name.removesuffix('_bias')}.bias", tensor)]
    name, tensor = mamba2_tensor(name, tensor, config.n_groups)
    return [(name.replace("mixer.dt_proj.bias", "mixer.dt.bias"), tensor)]


def nemotron_refused(config: Config) -> str | None:
    if {"mlp", "moe"} <= set(config.layer_types):
        return "it has layers with experts and layers without; llama.cpp wants them in all MLPs or in none"
    if config.n_group != 1:
        return "n_group is not 1; llama.cpp chooses among all experts"
    if config.mlp_hidden_act != "relu2" or config.mamba_hidden_act != "silu":
        return "its activations are not relu2 and silu"
    if config.mamba_proj_bias or config.mlp_bias or config.attention_bias or config.use_bias:
        return "its projections have biases"
    return None


def jamba_settings(writer: Writer, config: Config) -> None:
    attends = [kind == "full_attention" for kind in config.layer_types]
    writer.add_head_count_kv([config.num_key_value_heads if here else 0 for here in attends])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_ssm_conv_kernel(config.mamba_d_conv)
    writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
    writer.add_ssm_state_size(config.mamba_d_state)
    writer.add_ssm_time_step_rank(config.mamba_dt_rank)
    if config.num_experts > 1:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)


def jamba_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    if name.endswith(".A_log"):
        return [(name, -tensor.exp())]
    return [(name, tensor.squeeze(1) if name.endswith("conv1d.weight") else tensor)]


def jamba_refused(config: Config) -> str | None:
    if config.mamba_expand != 2 or config.mamba_proj_bias or not config.mamba_conv_bias:
        return "llama.cpp wants mamba_expand 2, mamba_conv_bias true and mamba_proj_bias false"
    return None
