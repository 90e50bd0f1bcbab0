"""Samba: Mamba-1 and windowed attention in turn, a shape to train from nothing.

Both kinds of layer call their mixer the same, so that a set of LoRA layers goes by number. A segment cannot continue
another one: pairs are computed row by row.
"""

from __future__ import annotations

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, at, attention
from hybrid_ft.hybrid_model.families.samba.modeling import SambaForCausalLM
from hybrid_ft.hybrid_model.layers.mamba1 import mamba1


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    scan = Mixing(per_token=6 * config.intermediate_size * config.state_size)
    seen = attention(config, config.sliding_window)
    return [(scan if kind == "linear_attention" else seen,) for kind in config.layer_types]


def _lora(config: Config) -> dict[str, str]:
    def of(kind: str) -> list[int]:
        return [i for i, name in enumerate(config.layer_types) if name == kind]

    return {
        "attention": at(of("full_attention"), r"mixer\.(q|k|v|o)_proj"),
        "recurrent": at(of("linear_attention"), r"mixer\.(in|out)_proj"),
        "mlp": r"\d+\.mlp\.(gate|up|down)_proj",
    }


FAMILY = Family(
    name="Samba",
    model_types={"samba": "SambaForCausalLM"},
    classes={"samba": SambaForCausalLM},
    unserved=("samba",),
    mixings=_mixings,
    lora=_lora,
    refused={
        r"mixer\.(x|dt)_proj": "it sets the state's decay and what is read from it",
        r"conv1d": "a convolution has no low rank",
    },
    own={"SambaMixer": mamba1},
    forks=False,
    continues=False,
    float32=("A_log", ".D"),
    tiny={
        "samba": {
            "hidden_size": 64, "num_hidden_layers": 4, "state_size": 8,
            "attn": {"layers": [1, 3], "num_heads": 4, "num_kv_heads": 2, "window_size": 16},
        }
    },
)  # fmt: skip
