"""Linear layers that read one tensor, with its gradient added up inside their products.

Autograd writes each layer's gradient of the tensor and adds it to the others': three passes over [N, D] for each layer
beyond the first, where a product that adds to what is there makes two, and rounds once less. Weights stay apart, so
that names, sharding, adapters and files are as they were.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.nn import functional as F

from hybrid_ft.hybrid_model.layers.lora_linear import plain_factors
from hybrid_ft.hybrid_model.layers.watched import has_hooks, is_watched
from hybrid_ft.kernels.first_order import first_order


class _Part(NamedTuple):
    """W [out, D]; of an adapted layer A [rank, D], B [out, rank] and the scale, else None and 0."""

    weight: torch.Tensor
    a: torch.Tensor | None
    b: torch.Tensor | None
    scale: float


def projections(x: torch.Tensor, *layers: nn.Module) -> tuple[torch.Tensor, ...]:
    """What each layer makes of x [..., D]. A hook, a wrapper, a bias, another dtype, or another kind of layer or of
    tensor at any of them, and all are called one by one."""
    if torch.is_grad_enabled() and x.requires_grad:
        parts = [_part(layer, x) for layer in layers]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts):
            tensors = [tensor for part in known for tensor in part[:3]]
            return _Projections.apply(x, [part.scale for part in known], *tensors)
    return tuple(layer(x) for layer in layers)


def _part(layer: Any, x: torch.Tensor) -> _Part | None:
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    base, factors = layer, None
    if getattr(layer, "adds_by_one_product", False):
        factors, base = plain_factors(layer), layer.base_layer
        if factors is None or "forward" in layer.__dict__ or has_hooks(layer):
            return None
    if is_watched(base, nn.Linear) or base.bias is not None or not x.dtype == base.weight.dtype == dtype:
        return None
    # a quantised or distributed tensor, torchao's for one, knows how to be a linear layer's weight and little else
    if type(base.weight) not in (nn.Parameter, torch.Tensor, FakeTensor):
        return None
    if factors is None:
        return None if base is not layer else _Part(base.weight, None, None, 0.0)
    a, b, scale = factors
    if not (torch.is_autocast_enabled(kind) or a.dtype == dtype):
        return None
    return _Part(base.weight, a.to(dtype), b.to(dtype), scale)


class _Projections(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scales: list[float], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        outputs, narrow = [], []
        for weight, a, b, scale in zip(tensors[::3], tensors[1::3], tensors[2::3], scales):
            assert weight is not None
            y = F.linear(x, weight)
            if a is not None and b is not None:
                narrow.append(F.linear(x, a).flatten(0, -2))
                y.view(-1, len(b)).addmm_(narrow[-1], b.t(), alpha=scale)
            outputs.append(y)
        # what is frozen needs the tensor itself no more
        read = any(ctx.needs_input_grad[2:])
        ctx.save_for_backward(x if read else None, *tensors, *narrow)
        ctx.scales, ctx.shape = scales, x.shape
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @first_order
    def backward(ctx: Any, *dys: torch.Tensor | None) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        tensors, narrow = rest[: 3 * len(dys)], iter(rest[3 * len(dys) :])
        wanted = ctx.needs_input_grad
        rows: Any = None if x is None else x.flatten(0, -2)
        dx: torch.Tensor | None = None
        gradients: list[torch.Tensor | None] = []
        for number, (dy, scale) in enumerate(zip(dys, ctx.scales)):
            weight, a, b = tensors[3 * number : 3 * number + 3]
            low = None if a is None else next(narrow)
            of_weight, of_a, of_b = wanted[3 * number + 2 : 3 * number + 5]
            if dy is None:
                gradients += [None] * 3
                continue
            dy = dy.reshape(-1, len(weight))
            factors = [(dy, weight)]
            if low is not None:
                assert a is not None and b is not None
                factors.append(((dy @ b).mul_(scale), a))
            gradients.append(dy.t() @ rows if of_weight else None)
            gradients.append(factors[1][0].t() @ rows if of_a else None)
            gradients.append((dy.t() @ low).mul_(scale) if of_b and low is not None else None)
            for one, other in factors if wanted[0] else ():
                dx = one @ other if dx is None else dx.addmm_(one, other)
        return None if dx is None else dx.view(ctx.shape), None, *gradients
