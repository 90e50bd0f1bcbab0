"""The RMS norm's Triton path as custom operators, opaque to torch.compile."""

from typing import Any

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rms_norm.gpu.kernels import backward_kernel, forward_kernel
from hybrid_ft.kernels.rowwise import PROGRAMS, as_rows, check_gpu, check_width, on, tile


def triton_rms_norm(
    x: Tensor, before: Tensor | None, after: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x + before and norm(x + before) + after, on checked arguments; the first is empty without ``before``."""
    there = {"x": x, "residual": before if after is None else after, "weight": weight}
    check_gpu(**{name: tensor for name, tensor in there.items() if tensor is not None})
    check_width("x", x)
    return forward_op(x, before, after, weight, float(eps))


def _memory(x: Tensor, before: Tensor | None, after: Tensor | None) -> tuple[Tensor, Tensor]:
    total = x.new_empty(0)
    dtype = x.dtype
    if before is not None:
        dtype = torch.promote_types(dtype, before.dtype)
        total = x.new_empty(x.shape, dtype=dtype)
    if after is not None:
        dtype = torch.promote_types(dtype, after.dtype)
    return total, x.new_empty(x.shape, dtype=dtype)


@operator("rms_norm")
def forward_op(
    x: Tensor, before: Tensor | None, after: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total, y = _memory(x, before, after)
    if not y.numel():
        return total, y
    D = x.shape[-1]
    BR, BD, warps = tile(D)
    x, weight = as_rows(x), weight.contiguous()
    before, after = (None if t is None else as_rows(t) for t in (before, after))
    with on(x):
        launch(
            forward_kernel, triton.cdiv(len(x), BR),
            x, x.stride(0), before, _stride(before), after, _stride(after), weight, None if before is None else total,
            y, eps, len(x), D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return total, y


@register_fake(forward_op)
def _(x: Tensor, before: Tensor | None, after: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _memory(x, before, after)


@operator("rms_norm_backward")
def backward_op(dy: Tensor, d_total: Tensor | None, total: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of what is normed, that of its other uses ``d_total`` included, and of weight."""
    dx, D = total.new_empty(total.shape), total.shape[-1]
    if not dx.numel():
        return dx, weight.new_zeros(weight.shape)
    dy, total, scale = as_rows(dy), as_rows(total), weight.contiguous()
    d_total = None if d_total is None else as_rows(d_total)
    BR, BD, warps = tile(D)
    tiles = triton.cdiv(len(total), BR)
    programs = min(PROGRAMS, tiles)
    dweight = total.new_empty(programs, D, dtype=torch.float32)
    with on(total):
        launch(
            backward_kernel, programs,
            dy, dy.stride(0), d_total, _stride(d_total), total, total.stride(0), scale, dx, dweight, eps, len(total),
            triton.cdiv(tiles, programs), D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return dx, dweight.sum(0).to(weight.dtype)


@register_fake(backward_op)
def _(dy: Tensor, d_total: Tensor | None, total: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return total.new_empty(total.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, before, after, weight, ctx.eps = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x if before is None else output[0], weight)
    ctx.dtypes = [None if t is None else t.dtype for t in (x, before, after)]


def _backward(ctx: Any, d_total: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
    total, weight = ctx.saved_tensors
    x, before, after = ctx.dtypes
    # without ``before`` the first output is empty, and so is its gradient
    d_total = None if before is None else d_total
    if dy is None:
        dx, dweight = d_total, None
    else:
        dx, dweight = backward_op(dy, d_total, total, weight, ctx.eps)
    return (
        *(None if d is None or t is None else d.to(t) for d, t in ((dx, x), (dx, before), (dy, after))),
        dweight,
        None,
    )


register_autograd(forward_op, _backward, _setup)


def _stride(x: Tensor | None) -> int:
    return 0 if x is None else x.stride(0)
