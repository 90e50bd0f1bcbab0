"""Kimi Linear and Ling 3: Kimi delta attention, latent attention, experts.

Both kinds of layer call their mixer ``self_attn``, so that a set of LoRA layers goes by number.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, at, attention, delta


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    heads = getattr(config, "linear_num_heads", config.num_attention_heads)
    size = getattr(config, "linear_head_dim", None) or config.head_dim
    latent = attention(config, query=config.qk_nope_head_dim + config.qk_rope_head_dim, value=config.v_head_dim)
    return [(delta(heads, size, size) if kind == "linear_attention" else latent,) for kind in config.layer_types]


def _lora(config: Config) -> dict[str, str]:
    def of(kind: str) -> list[int]:
        return [i for i, name in enumerate(config.layer_types) if name == kind]

    latent = r"self_attn\.(q_proj|q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj|g_proj)"
    gates = "g_a_proj|g_b_proj" if config.model_type == "kimi_linear" else "g_proj"
    return {
        "attention": at(of("full_attention"), latent),
        "delta": at(of("linear_attention"), rf"self_attn\.(q_proj|k_proj|v_proj|o_proj|{gates})"),
        "mlp": r"\d+\.mlp\.(shared_experts\.)?(gate|up|down)_proj",
    }


_REFUSED = {
    r"forget_gate\..*": "it sets the decay of each key channel",
    r"self_attn\.b_proj": "it sets the writing strength, with one output a head",
    r"mlp\.gate$": "a router stays as it was trained",
    r"conv1d": "a convolution of four weights a channel has no low rank",
}
_EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
_SIZES = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96,
    "moe_intermediate_size": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "qk_nope_head_dim": 16,
    "num_experts_per_tok": 2, "num_local_experts": 8,
}  # fmt: skip

KIMI = Family(
    name="Kimi Linear",
    model_types={"kimi_linear": "KimiLinearForCausalLM"},
    mixings=_mixings,
    lora=_lora,
    refused=_REFUSED,
    experts=_EXPERTS,
    router=r".*\.mlp\.gate\..*",
    # transformers reads the dense first layer as mlp, and writes it as the layers of experts are called
    rewritten=tuple((f"block_sparse_moe.{part}_proj", f"mlp.{part}_proj") for part in ("gate", "up", "down")),
    float32=("A_log", "dt_bias", "e_score_correction_bias"),
    tiny={
        "kimi_linear": _SIZES | {
            "num_hidden_layers": 5, "linear_head_dim": 16, "linear_num_heads": 4, "linear_conv_kernel_dim": 4
        }
    },
)  # fmt: skip
LING = Family(
    name="Ling 3",
    model_types={"bailing_hybrid": "BailingHybridForCausalLM"},
    unserved=("bailing_hybrid",),
    mixings=_mixings,
    lora=_lora,
    refused=_REFUSED,
    experts=_EXPERTS,
    router=r".*\.mlp\.gate\..*",
    carried=(r"model\.layers\.\d+\.(eh_proj|enorm|hnorm|final_layernorm|embed_tokens|shared_head).*", r"mtp\..*"),
    float32=("A_log", "dt_bias", "e_score_correction_bias"),
    tiny={
        "bailing_hybrid": _SIZES | {
            "num_hidden_layers": 6, "n_group": 2, "topk_group": 1, "head_dim": 16, "layer_group_size": 3,
            "first_k_dense_replace": 1,
        }
    },
)  # fmt: skip
FAMILIES = (KIMI, LING)
