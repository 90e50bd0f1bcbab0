"""LoRA's product added to the base's by one matrix product.

PEFT writes B A x, scales it, adds it, and converts it: five passes over an output of [N, D] where ``addmm`` makes
one. Under autocast the factors, which stay in float32, are multiplied in its dtype. What PEFT knows beyond the
plain form (DoRA, dropout, several adapters, adapters by row, merged weights) is computed by PEFT. Names, files
and merging stay PEFT's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional as F

from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.watched import has_hooks


def add_by_one_product(model: PeftModel) -> None:
    """Swap the classes of the model's adapted linear layers, in place."""
    for module in model.modules():
        if isinstance(module, LoraLayer) and type(module).__name__ in _LINEAR:
            cls: Any = type(module)
            module.__class__ = _added(cls)


_LINEAR = ("Linear", "Linear4bit", "Linear8bitLt")
"""PEFT's layers on torch's and bitsandbytes' linear ones."""


@cache
def _added(cls: type[nn.Module]) -> type[nn.Module]:
    """PEFT's layer, which adds the adapter's product to the base's in place: one [N, out] less in memory."""

    class AddedLinear(cls):  # type: ignore[misc, valid-type]
        adds_by_one_product = True

        def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            factors = None if args or kwargs else plain_factors(self)
            if factors is None or not (torch.is_autocast_enabled(x.device.type) or x.dtype == factors[0].dtype):
                return super().forward(x, *args, **kwargs)
            a, b, scaling = factors
            base = self.base_layer(x)
            narrow = F.linear(x, a)
            flat = torch.addmm(base.view(-1, b.shape[0]), narrow.view(-1, b.shape[1]), b.t(), alpha=scaling)
            return flat.view_as(base)

    return disguised(AddedLinear, cls)


def plain_factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """A [rank, in], B [out, rank] and the scale of the one active adapter; None where there is more to
    do than to add."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1 or layer.disable_adapters or layer.merged or names[0] in layer.lora_variant:
        return None
    (name,) = names
    a, b, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if has_hooks(a) or has_hooks(b) or b.bias is not None or (dropout.training and getattr(dropout, "p", 0)):
        return None
    return a.weight, b.weight, layer.scaling[name]
