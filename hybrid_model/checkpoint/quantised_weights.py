"""Weights that transformers quantises in loading, by bitsandbytes or torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from hybrid_ft.errors import ENVIRONMENT, InputError, one_line

_PACKAGES = ("bitsandbytes", "torchao")


def known_quantisation(config: Any) -> QuantizationConfigMixin:
    """transformers' quantization_config, or what a dict says of one.

    Raises InputError for one that is none, or of a package that has not been compared with plain transformers.
    """
    try:
        found: Any = AutoQuantizationConfig.from_dict(dict(config)) if isinstance(config, dict) else config
        method = getattr(found.quant_method, "value", found.quant_method)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"load: quantization_config: {one_line(error, 300)}") from None
    if method not in _PACKAGES:
        raise InputError(f"load: quantization_config is {method}; {' and '.join(_PACKAGES)} are known here")
    if importlib.util.find_spec(method) is None:
        raise InputError(
            f"load: quantization_config: {method} is not installed; pip install 'hybrid-ft[quantised]'", ENVIRONMENT
        )
    return cast(QuantizationConfigMixin, found)


def without_packing(model: nn.Module) -> None:
    """Keep bitsandbytes from packing 4-bit layers anew in evaluation, as it does on a CPU with AVX512: for products in
    bfloat16, for some shapes alone, and never back for training."""
    layers: Any = model.modules()
    for layer in layers:
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False


def scales_or_values(parameter: torch.Tensor) -> Iterator[torch.Tensor]:
    """The numbers of a weight that can fail to be finite: itself, or the scales of one in fewer bits."""
    if (state := getattr(parameter, "quant_state", None)) is not None:
        # where the scales are quantised themselves, their mean is kept apart
        yield from (state.state2.absmax, state.offset) if state.nested else (state.absmax,)
    elif (scales := getattr(parameter, "SCB", None)) is not None:
        yield scales
    elif parameter.dtype.is_floating_point and type(data := parameter.data) is torch.Tensor:
        yield data
    else:
        names = getattr(data, "__tensor_flatten__", lambda: ((), None))()[0]
        yield from (inner for name in names if (inner := getattr(data, name)).dtype.is_floating_point)
