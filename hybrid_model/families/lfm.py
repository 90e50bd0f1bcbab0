"""LFM2, 2.5 and 3: gated short convolutions and grouped attention, dense and with experts.

    y = W_out (C * conv(B * x)),   B, C, x = W_in h

The convolution has no activation and no state but its last inputs. ``out_proj`` is the convolution's and, in LFM2, the
attention's too: LoRA's sets are anchored by the parent.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention
from hybrid_ft.hybrid_model.layers.adapter import disguised, padding_is_zero
from hybrid_ft.hybrid_model.layers.delta_levels import over_levels
from hybrid_ft.hybrid_model.layers.heads import Heads
from hybrid_ft.hybrid_model.layers.watched import weights_of
from hybrid_ft.kernels.short_conv import short_conv


@cache
def _gated_conv(cls: type[nn.Module]) -> type[nn.Module]:
    class GatedConv(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            """[1, N, D] of the current layout; without one transformers' own."""
            layout = current_layout()
            if layout is None:
                with padding_is_zero(self, kwargs.get("attention_mask"), hidden_states):
                    return super().forward(hidden_states, *args, **kwargs)
            before, after, x = self.in_proj(hidden_states.squeeze(0)).chunk(3, dim=-1)

            channels = Heads(layout, x.shape[1])

            with weights_of(self.conv):
                weight, bias = channels.own(self.conv.weight.squeeze(1)), self.conv.bias
                bias = None if bias is None else channels.own(bias)

                def step(parts: Any, level: Any, tail: Any, state: Any, more: bool) -> tuple[torch.Tensor, Any, None]:
                    y, tail = short_conv(
                        parts[0], weight, bias, cu_seqlens=level.cu_seqlens, initial_tail=tail, output_final_tail=more,
                        activate=False,
                    )  # fmt: skip
                    return y, tail, None

                y = channels.give_back(over_levels(layout, (channels.gather(before * x),), step))
            return self.out_proj(after * y).unsqueeze(0)

    return disguised(GatedConv, cls)


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    windows = {"sliding_attention": getattr(config, "sliding_window", None)}
    conv = Mixing(exchanged=2 * config.hidden_size)
    return [(conv if kind == "conv" else attention(config, windows.get(kind)),) for kind in config.layer_types]


def _lora(config: Config) -> dict[str, str]:
    return {
        "attention": r"\d+\.self_attn\.(q_proj|k_proj|v_proj|o_proj|out_proj)",
        "recurrent": r"\d+\.conv\.(in|out)_proj",
        "mlp": r"\d+\.feed_forward\.w[123]",
    }


_REFUSED = {
    r"feed_forward\.gate$": "a router stays as it was trained",
    r"conv\.conv": "a convolution has no low rank",
    r"self_attn\.g_proj": "it has one output a head",
}
_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96,
}  # fmt: skip
_CONV = {"layer_types": ["conv", "conv", "full_attention", "conv"], "conv_L_cache": 3}

_own: Any = _gated_conv

LFM2 = Family(
    name="LFM2, LFM2.5, LFM3",
    model_types={"lfm2": "Lfm2ForCausalLM", "lfm3": "Lfm3ForCausalLM"},
    unserved=("lfm3",),
    mixings=_mixings,
    heads=lambda config: (config.num_attention_heads,),  # convolutions are shared by channels
    lora=_lora,
    refused=_REFUSED,
    own={"Lfm2ShortConv": _own, "Lfm3ShortConv": _own},
    float32=(),
    tiny={
        "lfm2": _SIZES | _CONV | {"block_auto_adjust_ff_dim": False},
        "lfm3": _SIZES | {
            "layer_types": ["conv", "sliding_attention", "full_attention", "conv"], "conv_L_cache": 7, "head_dim": 16,
            "sliding_window": 16,
        },
    },
)  # fmt: skip
LFM2_MOE = Family(
    name="LFM2 MoE",
    model_types={"lfm2_moe": "Lfm2MoeForCausalLM"},
    mixings=_mixings,
    heads=lambda config: (config.num_attention_heads,),  # convolutions are shared by channels
    lora=_lora,
    refused=_REFUSED,
    experts=("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
    router=r".*\.feed_forward\.(gate\..*|expert_bias)",
    own={"Lfm2MoeShortConv": _own},
    float32=("expert_bias",),
    tiny={
        "lfm2_moe": _SIZES | _CONV | {
            "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1
        }
    },
)  # fmt: skip
FAMILIES = (LFM2, LFM2_MOE)
