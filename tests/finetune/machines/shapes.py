"""Shapes of Olmo Hybrid's presets, also with some of their layers."""

from typing import Any

import torch
from transformers import OlmoHybridForCausalLM

from hybrid_ft.finetune.machines.shape import shape_of
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat


def cut(preset: str, layers: int) -> Any:
    config = preset_config(preset)
    config.num_hidden_layers, config.layer_types = layers, config.layer_types[:layers]
    return config


def shape(
    config: Any, lora: int = 0, targets: str = "all-linear", optimizer: str = "adamw", quantize: str | None = None
) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if lora or optimizer == "adamw_bf16" else torch.float32)
    try:
        with torch.device("meta"):
            model = lay_flat(OlmoHybridForCausalLM(config))
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        made = add_lora(model, targets, rank=lora) if lora else model
        return shape_of(made, config, True, quantize, optimizer=optimizer)
