"""Nemotron-Flash: delta rule, Mamba-2, attention and MLPs behind meta tokens.

The architecture is ours (``modeling``), because transformers has none and the released code is not run. Laid flat, its
two recurrent mixers run on the delta rule's kernels, and the meta tokens are a segment that every document continues.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, attention, delta, ssd
from hybrid_ft.hybrid_model.families.nemotron_flash.modeling import NemotronFlashForCausalLM
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.delta_levels import delta_over_levels
from hybrid_ft.hybrid_model.layers.mamba2 import mamba2
from hybrid_ft.hybrid_model.layers.watched import weights_of


@cache
def _delta_net(cls: type[nn.Module]) -> type[nn.Module]:
    class DeltaNet(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            """[1, N, D] of the current layout; without one on torch alone."""
            layout = current_layout()
            if layout is None:
                return super().forward(hidden_states, *args, **kwargs)
            qkv, beta = self.projected(hidden_states.squeeze(0))
            beta = beta.float()
            with weights_of(self.q_conv1d, self.k_conv1d, self.v_conv1d):
                weight = self.convolution()
            o = delta_over_levels(qkv, torch.zeros_like(beta), beta, weight, layout, self.num_heads, self.head_dim)
            return self.o_proj(self.o_norm(o).flatten(1)).unsqueeze(0)

    return disguised(DeltaNet, cls)


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    size, heads = config.hidden_size, config.num_attention_heads
    inner = config.mamba_expand * size
    scan = ssd(inner // config.mamba2_headdim, config.mamba2_headdim, config.mamba_d_state)
    rule = delta(heads, size // heads, size // heads)
    query, value = config.heads()
    of_kind = {"deltanet": (rule,), "f": ()}
    return [
        (attention(config, config.window(layer), query, value),) if kind == "a" else of_kind.get(kind, (scan,))
        for layer, kind in enumerate(config.kinds)
    ]


def _head(config: Config, hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return hidden, weight / weight.norm(dim=1, keepdim=True)


_SETS = {
    "attention": ("a", r"\d+\.self_attn\.(q|k|v|o)_proj"),
    "delta": ("deltanet", r"\d+\.gla\.(q|k|v|o)_proj"),
    "recurrent": ("m", r"\d+\.mamba\.(in|out)_proj"),
}


def _lora(config: Config) -> dict[str, str]:
    kinds = {kind.rstrip("2") for kind in config.kinds}
    sets = {name: pattern for name, (kind, pattern) in _SETS.items() if kind in kinds}
    return sets | {"mlp": r"\d+\.ffn\.(gate|up|down)_proj"}


_OWN: dict[str, Any] = {"NemotronFlashDeltaNet": _delta_net, "NemotronFlashMamba2": mamba2}

FAMILY = Family(
    name="Nemotron-Flash",
    model_types={"nemotron_flash": "NemotronFlashForCausalLM"},
    classes={"nemotron_flash": NemotronFlashForCausalLM},
    unserved=("nemotron_flash",),
    mixings=_mixings,
    lora=_lora,
    refused={
        r"gla\.b_proj": "it sets the writing strength, with one output a head",
        r"conv1d": "a convolution has no low rank",
    },
    own=_OWN,
    float32=("A_log", "dt_bias", ".D"),
    head=_head,
    before=lambda config: config.num_memory_tokens,
    tiny={
        "nemotron_flash": {
            "hidden_size": 64, "num_hidden_layers": 6, "layer_types": ["deltanet", "f", "m2", "a", "deltanet", "a"],
            "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96, "kq_norm": "rms",
            "sliding_window": 16, "global_attn_idx": [5], "rope": True, "rope_type": "ntk",
            "orig_max_position_embeddings": 128, "mamba2_headdim": 32, "num_memory_tokens": 5,
        }
    },
)  # fmt: skip
