"""Qwen3.5 to 3.8 and Qwen3-Next: Gated DeltaNet and gated attention.

One kind of layer in three: the writing strength beta is in [0, 1], a key head serves HV / H consecutive value heads,
norms of the residual stream, queries and keys scale by 1 + weight, the gated norm by its weight. Qwen3-Next's joined
projections are laid out by key head, Qwen3.5's are flat and separate.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention, delta
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.delta_levels import delta_over_levels
from hybrid_ft.hybrid_model.layers.projections import projections
from hybrid_ft.hybrid_model.layers.watched import weights_of
from hybrid_ft.kernels.delta_gates import delta_gates
from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm
from hybrid_ft.kernels.rms_norm import rms_norm
from hybrid_ft.kernels.swiglu import swiglu


def project(mixer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [N, D] to q, k and v side by side [N, 2 H K + HV V], the gate z [N, HV, V], b and a [N, HV]."""
    N, H, HV = len(x), mixer.num_k_heads, mixer.num_v_heads
    K, V = mixer.head_k_dim, mixer.head_v_dim
    if not hasattr(mixer, "in_proj_qkvz"):
        qkv, z, b, a = projections(x, mixer.in_proj_qkv, mixer.in_proj_z, mixer.in_proj_b, mixer.in_proj_a)
        return qkv, z.view(N, HV, V), b, a
    values = HV // H * V
    qkvz, ba = projections(x, mixer.in_proj_qkvz, mixer.in_proj_ba)
    q, k, v, z = qkvz.view(N, H, -1).split([K, K, values, values], dim=-1)
    b, a = ba.view(N, H, -1).chunk(2, dim=-1)
    return torch.cat([part.flatten(1) for part in (q, k, v)], dim=-1), z.reshape(N, HV, V), b.flatten(1), a.flatten(1)


@cache
def _mixer(cls: type[nn.Module]) -> type[nn.Module]:
    """transformers' mixer by this project's kernels, over the segments of a layout."""

    class GatedDeltaNet(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            """[1, N, D] of the current layout; without one transformers' own."""
            layout = current_layout()
            if layout is None:
                return super().forward(hidden_states, *args, **kwargs)
            qkv, z, b, a = project(self, hidden_states.squeeze(0))
            g, beta = delta_gates(a, b, self.A_log, self.dt_bias, allow_neg_eigval=False)
            with weights_of(self.conv1d, self.norm):
                o = delta_over_levels(
                    qkv, g, beta, self.conv1d.weight.squeeze(1), layout, self.num_k_heads, self.head_k_dim
                )
                normed = gated_rms_norm(o, z.view_as(o), self.norm.weight, eps=self.norm.variance_epsilon)
            return self.out_proj(normed.flatten(1)).unsqueeze(0)

    return disguised(GatedDeltaNet, cls)


@cache
def _norm(cls: type[nn.Module]) -> type[nn.Module]:
    """A norm whose weight is kept as its distance from 1."""

    class ZeroCentredRMSNorm(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rms_norm(x, 1.0 + self.weight.float(), self.eps)

    return disguised(ZeroCentredRMSNorm, cls)


@cache
def _mlp(cls: type[nn.Module]) -> type[nn.Module]:
    """Gate and product in one kernel, where the gate is SiLU."""

    class SwiGLU(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.config.hidden_act != "silu":
                return super().forward(x)
            return self.down_proj(swiglu(*projections(x, self.gate_proj, self.up_proj)))

    return disguised(SwiGLU, cls)


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    rule = delta(config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
    return [(rule if kind == "linear_attention" else attention(config),) for kind in config.layer_types]


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
    r"mlp\.gate$|shared_expert_gate": "a router stays as it was trained",
    r"conv1d": "a convolution of four weights a channel has no low rank",
}
_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "linear_conv_kernel_dim": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}  # fmt: skip
_EXPERTS = {
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2
}  # fmt: skip


def _own(prefix: str) -> dict[str, Any]:
    return {f"{prefix}GatedDeltaNet": _mixer, f"{prefix}RMSNorm": _norm, f"{prefix}MLP": _mlp}


QWEN3_5 = Family(
    name="Qwen3.5, 3.6, 3.8",
    model_types={"qwen3_5_text": "Qwen3_5ForCausalLM"},
    frames={"qwen3_5": "qwen3_5_text"},
    mixings=_mixings,
    shares_heads=True,
    lora=_lora,
    refused=_REFUSED,
    own=_own("Qwen3_5"),
    carried=(r"model\.visual\..*", r"mtp\..*"),
    tiny={"qwen3_5_text": _SIZES | {"intermediate_size": 96}},
)
QWEN3_5_MOE = Family(
    name="Qwen3.5 MoE",
    model_types={"qwen3_5_moe_text": "Qwen3_5MoeForCausalLM"},
    frames={"qwen3_5_moe": "qwen3_5_moe_text"},
    mixings=_mixings,
    shares_heads=True,
    lora=_lora,
    refused=_REFUSED,
    experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    router=r".*\.mlp\.gate\..*",
    own=_own("Qwen3_5Moe"),
    carried=(r"model\.visual\..*", r"mtp\..*"),
    tiny={"qwen3_5_moe_text": _SIZES | _EXPERTS},
)
QWEN3_NEXT = Family(
    name="Qwen3-Next",
    model_types={"qwen3_next": "Qwen3NextForCausalLM"},
    mixings=_mixings,
    shares_heads=True,
    lora=_lora,
    refused=_REFUSED | {r"mlp(\.shared_expert\.\w+)?$": "PEFT 0.21 would adapt the routed experts in its place"},
    experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    router=r".*\.mlp\.gate\..*",
    own=_own("Qwen3Next"),
    carried=(r"mtp\..*",),
    tiny={"qwen3_next": _SIZES | _EXPERTS | {"intermediate_size": 96}},
)
FAMILIES = (QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT)
