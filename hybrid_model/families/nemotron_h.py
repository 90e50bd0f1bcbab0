"""Nemotron-H and 3: Mamba-2, attention, MLP or experts, one a layer.

All four are called ``mixer``, so that a set of LoRA layers goes by number. transformers' single step of Mamba-2 leaves
out the lower bound of the time step that its scan has: a token decoded with a cache differs by up to 5e-4.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import PEFT_REFUSES, Config, Family, Mixing, at, attention, ssd, ssd_heads
from hybrid_ft.hybrid_model.layers.mamba2 import mamba2


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = ssd(config.mamba_num_heads, config.mamba_head_dim, config.ssm_state_size, config.n_groups)
    of_kind = {"linear_attention": (scan,), "full_attention": (attention(config),)}
    return [of_kind.get(kind, ()) for kind in config.layers_block_type]


def _lora(config: Config) -> dict[str, str]:
    def of(kind: str) -> list[int]:
        return [i for i, name in enumerate(config.layers_block_type) if name == kind]

    mlps = [at(of("mlp"), r"mixer\.(up|down)_proj"), at(of("moe"), r"mixer\.shared_experts\.(up|down)_proj")]
    return {
        "attention": at(of("full_attention"), r"mixer\.(q|k|v|o)_proj"),
        "recurrent": at(of("linear_attention"), r"mixer\.in_proj"),
        "mlp": f"({'|'.join(mlps)})",
    }


FAMILY = Family(
    name="Nemotron-H, Nemotron 3",
    model_types={"nemotron_h": "NemotronHForCausalLM"},
    mixings=_mixings,
    heads=lambda config: ssd_heads(config, config.mamba_num_heads, config.mamba_hidden_act),
    lora=_lora,
    refused={
        r"mixer\.out_proj": PEFT_REFUSES,
r"mixer\.gate$": "a router stays as it was trained", r"conv1d": "a convolution has no low rank"},
    experts=("mixer.experts.up_proj", "mixer.experts.down_proj"),
    router=r".*\.mixer\.gate\..*",
    own={"NemotronHMamba2Mixer": mamba2},
    carried=(r"mtp\..*",),
    float32=("A_log", "dt_bias", ".D", "e_score_correction_bias"),
    tiny={
        "nemotron_h": {
            "hidden_size": 64, "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
            "ssm_state_size": 16, "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 2, "chunk_size": 16,
            "n_routed_experts": 4, "moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32,
        }
    },
)  # fmt: skip
