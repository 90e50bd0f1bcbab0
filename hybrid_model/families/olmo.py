"""Olmo 2 and 3, Olmo Hybrid's transformer twins; windows in Olmo 3.

Olmo 3's rope differs by kind of layer: YaRN on the full ones, plain rope where a window is. transformers reads a config
that says one rope for all as plain rope for all, and an old config's ``rope_theta`` for the full layers alone.
"""

from __future__ import annotations

from typing import Any

from hybrid_ft.hybrid_model.families.family import Config, Family, Mixing, Step, attention
from hybrid_ft.hybrid_model.layers.norm_and_mlp import gated_mlp, plain_norm

_KINDS = ("sliding_attention", "full_attention")
_THETA = 500_000.0


def _mixings(config: Config) -> list[tuple[Mixing, ...]]:
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [(attention(config, config.sliding_window if kind == "sliding_attention" else None),) for kind in kinds]


def _repair(raw: dict[str, Any]) -> dict[str, Any]:
    """One rope for each kind of layer: what a flat config says is the full layers'; all have the same theta."""
    if raw.get("model_type") != "olmo3":
        return raw
    rope = raw.get("rope_parameters") or {}
    if any(kind in rope for kind in _KINDS):
        return raw
    full = dict(rope or raw.get("rope_scaling") or {})
    theta = full.setdefault("rope_theta", raw.get("rope_theta") or _THETA)
    full.setdefault("rope_type", full.pop("type", "default"))
    both = {"full_attention": full, "sliding_attention": {"rope_type": "default", "rope_theta": theta}}
    kept = {key: value for key, value in raw.items() if key not in ("rope_scaling", "rope_theta")}
    return kept | {"rope_parameters": both}


def _misread(config: Config) -> str | None:
    rope = config.rope_parameters or {}
    if config.model_type == "olmo3" and "rope_type" in rope:
        return (
            "rope_parameters must hold full_attention and sliding_attention; transformers has read one rope for all "
            "layers as plain rope and lost its YaRN. Open the folder with hybrid_ft.load, which mends it"
        )
    return None


_SIZES = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96,
}  # fmt: skip
_OWN: dict[str, Any] = {
    "Olmo2RMSNorm": plain_norm, "Olmo2MLP": gated_mlp, "Olmo3RMSNorm": plain_norm, "Olmo3MLP": gated_mlp
}  # fmt: skip

FAMILY = Family(
    name="Olmo 2 and 3",
    model_types={"olmo3": "Olmo3ForCausalLM", "olmo2": "Olmo2ForCausalLM"},
    mixings=_mixings,
    lora=lambda config: {
        "attention": r"\d+\.self_attn\.(q|k|v|o)_proj",
        "mlp": r"\d+\.mlp\.(gate|up|down)_proj",
    },
    heads=lambda config: (config.num_attention_heads,),
    own=_OWN,
    step=Step(after=True),
    repair=_repair,
    misread=_misread,
    tiny={"olmo3": _SIZES | {"sliding_window": 16}, "olmo2": _SIZES},
)
