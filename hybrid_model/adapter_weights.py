"""Weights trained beside a frozen base: in float32, saved to fit it.

PiSSA and OLoRA begin with factors of the base's own weights and take their product out of it:
W = (W - s B0 A0) + s B A. Such an adapter fits the changed base alone. The same update of the base as it was is a sum
of twice the rank, s [B, -B0] [A; A0], which every reader of LoRA opens.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.other import ModulesToSaveWrapper

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_START = "factors_at_start"


def train_in_float32(model: PeftModel) -> None:
    """What is trained whole, too: PEFT does so with LoRA's factors alone, and bfloat16 loses small updates."""
    for module in model.modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            for parameter in module.parameters():
                if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                    parameter.data = parameter.data.float()


def keep_start(model: PeftModel) -> None:
    """Remember A and B as they are now, for ``as_plain_lora``."""
    factors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items() if _is_factor(name)}
    setattr(model, _START, factors)


def as_plain_lora(
    model: PeftModel, saved: dict[str, torch.Tensor], config: LoraConfig
) -> tuple[dict[str, torch.Tensor], LoraConfig]:
    """What ``get_peft_model_state_dict`` gave, and a copy of its config, for the base as it was before the adapter took
    its start. The same again where the start took nothing from the base.
    """
    config = copy.copy(config)
    start: dict[str, torch.Tensor] | None = getattr(model, _START, None)
    if start is None:
        return saved, config
    start = {name.replace(".default.", "."): tensor for name, tensor in start.items()}
    plain = {}
    for name, tensor in saved.items():
        if not _is_factor(name):
            plain[name] = tensor
        elif "lora_A" in name:
            plain[name] = torch.cat([tensor, start[name].to(tensor)], dim=0)
        else:
            plain[name] = torch.cat([tensor, -start[name].to(tensor)], dim=1)
    config.r = 2 * config.r
    config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
    return plain, config


def merged(model: PeftModel) -> PreTrainedModel:
    """The model with the adapter folded in, each module in its base's dtype."""
    dtypes = {
        id(module): next(module.original_module.parameters()).dtype
        for module in model.modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    for module in model.modules():
        if id(module) in dtypes:
            module.to(dtypes[id(module)])
    folded: PreTrainedModel = model.merge_and_unload()
    return folded


def _is_factor(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name
