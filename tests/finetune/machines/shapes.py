"""Shapes of Olmo Hybrid's presets and of released models, also with some of their layers."""

from typing import Any

import torch
from transformers import Olmo2Config, Olmo3Config, Qwen3_5MoeTextConfig, Qwen3_5TextConfig, Qwen3NextConfig

from hybrid_ft.finetune.machines.shape import shape_of
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.scorer import as_scorer, scorer_class

_QWEN3_5 = {
    "Qwen3.5-0.8B": {
        "hidden_size": 1024, "intermediate_size": 3584, "num_attention_heads": 8, "num_key_value_heads": 2,
        "linear_num_value_heads": 16, "tie_word_embeddings": True,
    },
    "Qwen3.5-4B": {"hidden_size": 2560, "intermediate_size": 9216, "tie_word_embeddings": True},
    "Qwen3.5-9B": {},
    "Qwen3.5-27B": {
        "hidden_size": 5120, "intermediate_size": 17408, "num_attention_heads": 24, "linear_num_value_heads": 48
    },
}  # fmt: skip

_OLMO = {"vocab_size": 100352, "max_position_embeddings": 65536}
_RELEASED: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "Olmo-2-1B": (
        Olmo2Config,
        _OLMO | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 16},
    ),
    "Olmo-3-7B": (Olmo3Config, _OLMO),
    "Olmo-3-32B": (
        Olmo3Config,
        _OLMO | {"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40, "num_key_value_heads": 8},
    ),
    "Qwen3-Next-80B-A3B": (Qwen3NextConfig, {}),
    "Qwen3.5-35B-A3B": (Qwen3_5MoeTextConfig, {}),
}


def cut(preset: str, layers: int) -> Any:
    """The config of a preset, or of a released model, with so many layers."""
    if preset in _QWEN3_5:
        return Qwen3_5TextConfig(**_QWEN3_5[preset], num_hidden_layers=layers)
    if preset in _RELEASED:
        kind, sizes = _RELEASED[preset]
        return kind(**sizes, num_hidden_layers=layers)
    config = preset_config(preset)
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
    return config


def shape(
    config: Any,
    lora: int = 0,
    targets: str = "all-linear",
    optimizer: str = "adamw",
    quantize: str | None = None,
    dropout: float = 0.0,
    scores: bool = False,
) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if lora or optimizer == "adamw_bf16" else torch.float32)
    config = as_scorer(config) if scores else config
    kind = scorer_class(config) if scores else family_of(config).language_model(config.model_type)
    try:
        with torch.device("meta"):
            model = lay_flat(kind(config))
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        made = add_lora(model, targets, rank=lora, dropout=dropout) if lora else model
        return shape_of(made, config, True, quantize, optimizer=optimizer)
