"""llama.cpp's architecture of Kimi Linear."""

from __future__ import annotations

import torch

from hybrid_ft.finetune.conversion.gguf.mamba2 import Config, Tensors, Writer


def kimi_settings(writer: Writer, config: Config) -> None:
    """llama.cpp keeps one compressed key a token, for all heads, so that an attention layer has one head of them."""
    from gguf import ExpertGatingFuncType

    writer.add_head_count_kv([int(kind == "full_attention") for kind in config.layer_types])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_kda_head_dim(config.linear_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_leading_dense_block_count(config.mlp_layer_types.count("dense"))
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def kimi_tensor(name: str, tensor: torch.Tensor, config: Config) -> Tensors:
    """Keys and values come apart where they are unfolded, the keys' matrix turned round, as it
    is multiplied into queries."""
    before, _, part = name.rpartition(".self_attn.")
    if part == "kv_b_proj.weight":
        heads = tensor.view(config.num_attention_heads, -1, tensor.shape[1])
        k, v = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
        return [(f"{before}.self_attn.k_b_proj.weight", k.transpose(1, 2)), (f"{before}.self_attn.v_b_proj.weight", v)]
    if part == "A_log":
        return [(name, -tensor.exp().view(-1, 1))]
    if part == "dt_bias":
        return [(f"{before}.self_attn.dt_proj.bias", tensor)]
    if name.endswith("e_score_correction_bias"):
        return [(f"{name.removesuffix('_bias')}.bias", tensor)]
    # a layer without experts has its MLP where others have them
    dense = name.endswith(tuple(f"block_sparse_moe.{each}_proj.weight" for each in ("gate", "up", "down")))
    return [(name.replace("block_sparse_moe", "mlp") if dense else name, tensor)]


def kimi_refused(config: Config) -> str | None:
    dense = config.mlp_layer_types.count("dense")
    if "dense" in config.mlp_layer_types[dense:]:
        return "a layer without experts comes after one that has them"
    if config.q_lora_rank is not None or config.attention_bias:
        return "its queries are compressed or have biases"
    if config.n_group != 1 or not config.norm_topk_prob:
        return "llama.cpp routes with n_group 1 and norm_topk_prob true"
    if config.linear_num_heads != config.num_attention_heads:
        return "linear_num_heads is not num_attention_heads; llama.cpp has one number for both"
    return None
