"""Base weights in 4 or 8 bits under LoRA, by bitsandbytes (QLoRA, 2305.14314)."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.hybrid_model.adapters import ALL_LINEAR, target_modules

NF4, INT8 = "nf4", "int8"


def check_installed() -> None:
    """Raises InputError where bitsandbytes is not there."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "model.quantize: bitsandbytes is not installed; pip install 'hybrid-ft[quantised]'", ENVIRONMENT
        )


def large_layers(model: nn.Module, config: PreTrainedConfig) -> dict[str, nn.Linear]:
    """The layers that may be kept in fewer bits, by name: those that LoRA's all-linear would adapt. ``model`` may have adapters."""
    pattern = re.compile(target_modules(ALL_LINEAR, config))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and pattern.fullmatch(name.removeprefix("base_model.model.").removesuffix(".base_layer"))
    }


def quantise(model: PreTrainedModel, how: str, compute: torch.dtype) -> None:
    """Put nf4 (with double quantisation) or int8 layers in the place of those that LoRA's all-linear would adapt.

    In place, a layer at a time, on the device where the weights lie. ``compute`` is the dtype of the products. What
    sets decay and writing strength, convolutions, norms, routers, experts, embeddings and the head stay as they are.
    The layers are deterministic: loading the same base again gives the same weights.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each product in 8 bits
    for name in large_layers(model, model.config):
        parent, _, last = name.rpartition(".")
        holder = model.get_submodule(parent)
        setattr(holder, last, _layer(getattr(holder, last), how, compute))


def packed_bytes(model: nn.Module, config: PreTrainedConfig, how: str) -> dict[str, int]:
    """Bytes of every weight that ``quantise`` packs, by its name in ``model``, which may have adapters and no memory."""
    found = {}
    for name, module in large_layers(model, config).items():
        numbers = module.weight.numel()
        if how == INT8:
            found[f"{name}.weight"] = numbers + 4 * module.out_features  # a scale for each row
            continue
        blocks = -(-numbers // 64)  # each with a scale in 8 bits, and 256 of these with one in 32
        tables = 4 * (256 + 16 + 1)
        found[f"{name}.weight"] = -(-numbers // 2) + blocks + 4 * -(-blocks // 256) + tables
    return found


def _layer(linear: nn.Linear, how: str, compute: torch.dtype) -> nn.Module:
    import bitsandbytes as bnb

    shape, bias, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight
    made: Any
    with torch.device("meta"):
        if how == NF4:
            made = bnb.nn.Linear4bit(*shape, bias=bias, compute_dtype=compute, quant_type=NF4)
        else:
            made = bnb.nn.Linear8bitLt(*shape, bias=bias, has_fp16_weights=False, threshold=6.0)
    if how == NF4:
        # in evaluation on some CPUs it would pack the weights anew, for products that round otherwise
        made.support_avx512bf16_for_cpu = False
        made.weight = bnb.nn.Params4bit(weight.data, requires_grad=False, quant_type=NF4, module=made)
    else:
        made.weight = bnb.nn.Int8Params(weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = linear.bias
    return made.to(weight.device).train(linear.training)


@contextmanager
def known_to_peft(model: PreTrainedModel, how: str | None) -> Iterator[None]:
    """PEFT adapts such layers where the model says that it was loaded so; TRL would then round the adapters to bfloat16."""
    names = [] if how is None else [f"is_loaded_in_{4 if how == NF4 else 8}bit"]
    for name in names:
        setattr(model, name, True)
    try:
        yield
    finally:
        for name in names:
            delattr(model, name)


def size(parameter: nn.Parameter) -> int:
    """Numbers that a parameter stands for, packed or not."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()
