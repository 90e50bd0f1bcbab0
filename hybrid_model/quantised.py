"""Base weights in 4 or 8 bits under LoRA, by bitsandbytes (QLoRA, 2305.14314)."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.hybrid_model.adapters import ALL_LINEAR, target_modules
from hybrid_ft.hybrid_model.layers.adapter import disguised

NF4, INT8 = "nf4", "int8"


def check_installed() -> None:
    """Raises InputError where bitsandbytes is not there."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "model.quantize: bitsandbytes is not installed; pip install 'hybrid-ft[quantised]'", ENVIRONMENT
        )


def large_layers(model: nn.Module, config: PreTrainedConfig) -> dict[str, nn.Linear]:
    """The layers that may be kept in fewer bits, by name: those that LoRA's all-linear would adapt. ``model`` may have
    adapters."""
    pattern = re.compile(target_modules(ALL_LINEAR, config))
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and pattern.fullmatch(name.removeprefix("base_model.model.").removesuffix(".base_layer"))
    }


def quantise(model: PreTrainedModel, how: str, compute: torch.dtype, values: bool = True) -> None:
    """Put nf4 (with double quantisation) or int8 layers in the place of those that LoRA's all-linear would adapt.

    In place, a layer at a time, on the device where the weights lie. ``compute`` is the dtype of the products. What
    sets decay and writing strength, convolutions, norms, routers, experts, embeddings and the head stay as they are.
    The layers are deterministic: loading the same base again gives the same weights. ``values``: False makes the same
    layers without any, for a model that gets them, and ``tables``, from another process.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each product in 8 bits
    made: dict[torch.Size, nn.Parameter] = {}
    for name in large_layers(model, model.config):
        parent, _, last = name.rpartition(".")
        holder = model.get_submodule(parent)
        linear = getattr(holder, last)
        if how == INT8:
            layer: nn.Module = _in_8_bits(linear, values)
        elif values:
            layer = _in_4_bits(linear, compute, _packed(linear.weight))
        else:
            if (shape := linear.weight.shape) not in made:
                made[shape] = _packed(torch.zeros(shape, dtype=linear.weight.dtype))
            layer = _in_4_bits(linear, compute, _without_values(made[shape]))
        setattr(holder, last, layer.train(linear.training))


def tables(model: nn.Module) -> Iterator[torch.Tensor]:
    """What unpacks the weights in 4 bits, in the order of the layers; that of weights in 8 bits are buffers."""
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def packed_bytes(model: nn.Module, config: PreTrainedConfig, how: str) -> dict[str, int]:
    """Bytes of every weight that ``quantise`` packs, by its name in ``model``, which may have
    adapters and no memory."""
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


def _in_4_bits(linear: nn.Linear, compute: torch.dtype, weight: Any) -> nn.Module:
    """bitsandbytes' layer around a packed weight."""
    from bitsandbytes.nn import Linear4bit

    shape, bias = (linear.in_features, linear.out_features), linear.bias is not None
    with torch.device("meta"):
        made: Any = Linear4bit(*shape, bias=bias, compute_dtype=compute, quant_type=NF4)
    # in evaluation on some CPUs it would pack the weights anew, for products that round otherwise
    made.support_avx512bf16_for_cpu = False
    # FSDP2's gathered weight knows nothing of it, and the layer then takes its own
    weight.module, made.quant_state = made, weight.quant_state
    made.weight, made.bias = weight, linear.bias
    return made


def _packed(weight: torch.Tensor) -> Any:
    """In 4 bits with what unpacks it, on the weight's device."""
    from bitsandbytes.nn import Params4bit

    packed: Any = Params4bit(weight.data, requires_grad=False, quant_type=NF4)
    return packed.to(weight.device)


def _without_values(packed: Any) -> Any:
    """The same in shapes and dtypes, in memory that nobody has written to."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Params4bit

    def empty(state: Any) -> Any:
        fields = {name: torch.empty_like(x) if isinstance(x, torch.Tensor) else x for name, x in vars(state).items()}
        fields["state2"] = empty(state.state2) if fields.pop("nested") else None
        return QuantState(**fields)

    data = torch.empty_like(packed.data.as_subclass(torch.Tensor))
    kept = {name: getattr(packed, name) for name in ("blocksize", "compress_statistics", "quant_type", "quant_storage")}
    return Params4bit(data, requires_grad=False, quant_state=empty(packed.quant_state), bnb_quantized=True, **kept)


def _in_8_bits(linear: nn.Linear, values: bool) -> nn.Module:
    import bitsandbytes as bnb

    weight, bias = linear.weight, linear.bias is not None
    with torch.device("meta"):
        made: Any = _int8_layer()(
            linear.in_features, linear.out_features, bias=bias, has_fp16_weights=False, threshold=6.0
        )
    if values:
        packed, scales, _ = bnb.functional.int8_vectorwise_quant(weight.data.to(torch.float16))
    else:
        packed = torch.empty(weight.shape, dtype=torch.int8)
        scales = torch.empty(weight.shape[0])
    made.weight = bnb.nn.Int8Params(packed, requires_grad=False, has_fp16_weights=False)
    made.register_buffer("scales", scales, persistent=False)
    made.bias = linear.bias
    return made


@cache
def _int8_layer() -> Any:
    from bitsandbytes import matmul
    from bitsandbytes.nn import Linear8bitLt

    class Int8Linear(Linear8bitLt):
        """bitsandbytes keeps weight and scales once more beside the module, where they neither move with the model to a
        device nor are divided with it by FSDP2, whose gathered weight is a plain parameter. Here both are the module's.

        scales: [out], float32; a row's largest magnitude, 127 of its steps
        """

        scales: torch.Tensor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state.is_training = self.training
            # shares its memory, which is there whenever the layer computes, in backward too
            self.state.CB, self.state.SCB = self.weight.data, self.scales
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return matmul(x, self.weight, bias=bias, state=self.state)

    return disguised(Int8Linear, Linear8bitLt)


@contextmanager
def known_to_peft(model: PreTrainedModel, how: str | None) -> Iterator[None]:
    """PEFT adapts such layers where the model says that it was loaded so; TRL would then round
    the adapters to bfloat16."""
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
