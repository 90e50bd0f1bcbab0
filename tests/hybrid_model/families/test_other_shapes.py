"""Shapes that the tests' own sizes have not: other ratios of heads, groups and layers, biases, widths, tied
embeddings."""

import copy
import warnings

import pytest
import torch

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of
from tests.hybrid_model.families.conftest import BY_DEFAULT

SHAPES = {
    "olmo_hybrid": {
        "num_attention_heads": 8, "num_key_value_heads": 2, "linear_num_key_heads": 2, "linear_num_value_heads": 2,
        "linear_key_head_dim": 24, "linear_value_head_dim": 40, "linear_conv_kernel_dim": 3,
        "tie_word_embeddings": True,
    },
    "qwen3_5_text": {
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16, "linear_num_key_heads": 1,
        "linear_num_value_heads": 3, "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "num_hidden_layers": 3, "attention_bias": True, "linear_conv_kernel_dim": 3, "tie_word_embeddings": True,
    },
    "qwen3_5_moe_text": {
        "num_experts": 5, "num_experts_per_tok": 3, "linear_num_key_heads": 1, "linear_num_value_heads": 3,
    },
    "qwen3_next": {
        "mlp_only_layers": [0, 2], "linear_num_key_heads": 4, "linear_key_head_dim": 8, "linear_conv_kernel_dim": 2,
        "norm_topk_prob": False,
    },
    "olmo3": {
        "sliding_window": 5, "num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "olmo2": {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True},
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "mlp", "linear_attention", "full_attention", "moe", "linear_attention"],
        "n_groups": 1, "mamba_num_heads": 6, "mamba_head_dim": 16, "ssm_state_size": 24, "use_bias": True,
        "mlp_bias": True, "attention_bias": True, "conv_kernel": 3,
    },
    "lfm2": {"conv_L_cache": 4, "num_key_value_heads": 1, "conv_bias": True, "tie_word_embeddings": False},
    "lfm3": {
        "conv_L_cache": 5, "sliding_window": 7,
        "layer_types": ["sliding_attention", "conv", "full_attention", "conv"],
    },
    "lfm2_moe": {"num_dense_layers": 0, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "granitemoehybrid": {
        "num_local_experts": 0, "mamba_n_groups": 2, "mamba_d_conv": 3, "position_embedding_type": "rope",
        "mamba_conv_bias": False, "mamba_proj_bias": True, "embedding_multiplier": 3.0, "tie_word_embeddings": True,
    },
    "falcon_h1": {
        "mamba_n_groups": 2, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "mamba_d_conv": 3,
        "mamba_proj_bias": True, "ssm_multipliers": [0.5, 0.7, 1.3, 0.9, 1.1], "embedding_multiplier": 2.0,
        "key_multiplier": 0.6, "ssm_in_multiplier": 0.4, "ssm_out_multiplier": 1.6, "mlp_multipliers": [0.7, 1.4],
    },
    "kimi_linear": {
        "linear_num_heads": 2, "linear_head_dim": 24, "linear_conv_kernel_dim": 3, "v_head_dim": 24,
    },
    "bailing_hybrid": {"num_hidden_layers": 4, "layer_group_size": 2, "first_k_dense_replace": 2, "n_group": 1},
    "bamba": {
        "attn_layer_indices": [0, 3], "mamba_n_groups": 2, "mamba_d_conv": 3, "mamba_d_state": 24,
        "mamba_proj_bias": True, "attention_bias": True,
    },
    "zamba2": {
        "num_mem_blocks": 2, "layers_block_type": ["hybrid", "linear_attention", "hybrid", "hybrid"],
        "use_mem_rope": False, "mamba_ngroups": 2, "mamba_d_conv": 3, "add_bias_linear": True,
    },
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 0, "mamba_dt_rank": 3, "mamba_expand": 1, "mamba_d_conv": 3,
        "mamba_conv_bias": False, "mamba_proj_bias": True, "mamba_d_state": 5,
    },
    "nemotron_flash": {
        "layer_types": ["m2", "a", "f", "deltanet"], "num_hidden_layers": 4, "num_key_value_heads": 1,
        "sliding_window": 6, "global_attn_idx": [], "num_memory_tokens": 1,
    },
    "samba": {
        "attn": {"layers": [0, 2], "num_heads": 2, "num_kv_heads": 1, "window_size": 5}, "conv_kernel": 3,
        "use_conv_bias": False, "use_bias": True, "tie_word_embeddings": True,
    },
}  # fmt: skip


def test_every_family_has_one() -> None:
    assert list(SHAPES) == [kind for family in FAMILIES for kind in family.tiny]


def gradients(model, logits):
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    sum((piece * torch.randn(piece.shape, generator=generator)).sum() for piece in logits).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in BY_DEFAULT else pytest.mark.slow) for kind in SHAPES]
)
def test_documents_and_forks_are_as_they_are_alone(plain_and_flat, relative, assert_gradients, kind):
    with warnings.catch_warnings(action="ignore"):
        plain, flat = plain_and_flat(kind, seed=7, **SHAPES[kind])
    lengths, parents = [9, 31, 7, 3], [-1, -1, 0, 0]
    if not family_of(flat.config).forks:
        parents = [-1] * 4
    tokens = torch.randint(3, 128, (sum(lengths),), generator=torch.Generator().manual_seed(2))
    parts, layout = tokens.split(lengths), build_layout(lengths, parents)

    def alone(model):
        rows = [part if up < 0 else torch.cat([parts[up], part]) for part, up in zip(parts, parents, strict=True)]
        pieces = (model(input_ids=row[None], use_cache=False).logits[0] for row in rows)
        return [piece[-n:] for piece, n in zip(pieces, lengths, strict=True)]

    def together(model):
        return model(input_ids=tokens[None], layout=layout).logits[0].split(lengths)

    with torch.no_grad():
        for got, want in zip(together(flat), alone(plain), strict=True):
            assert relative(got, want) < 1e-5
    plain, flat = (copy.deepcopy(model).double() for model in (plain, flat))
    for model in (plain, flat):
        model.set_experts_implementation("eager")
    assert_gradients(gradients(flat, together(flat)), gradients(plain, alone(plain)), 1e-5)
