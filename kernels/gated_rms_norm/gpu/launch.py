"""The gated RMS norm's Triton path as custom operators, opaque to torch.compile."""

from typing import Any

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.gated_rms_norm.gpu.kernels import backward_kernel, forward_kernel
from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rowwise import PROGRAMS, as_rows, check_gpu, check_width, on, tile


def triton_gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The op on checked arguments."""
    check_gpu(x=x, gate=gate, weight=weight)
    check_width("x", x)
    return forward_op(x, gate, weight, float(eps))


@operator("gated_rms_norm")
def forward_op(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    y, D = x.new_empty(x.shape), x.shape[-1]
    if not y.numel():
        return y
    x, gate, weight = as_rows(x), as_rows(gate), weight.contiguous()
    BR, BD, warps = tile(D)
    with on(x):
        launch(
            forward_kernel, triton.cdiv(len(x), BR),
            x, x.stride(0), gate, gate.stride(0), weight, y, eps, len(x), D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return y


@register_fake(forward_op)
def _(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@operator("gated_rms_norm_backward")
def backward_op(dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dgate, dweight."""
    dx, dgate, D = x.new_empty(x.shape), gate.new_empty(gate.shape), x.shape[-1]
    if not dx.numel():
        return dx, dgate, weight.new_zeros(weight.shape)
    dy, x, gate, scale = as_rows(dy), as_rows(x), as_rows(gate), weight.contiguous()
    BR, BD, warps = tile(D)
    tiles = triton.cdiv(len(x), BR)
    programs = min(PROGRAMS, tiles)
    dweight = x.new_empty(programs, D, dtype=torch.float32)
    with on(x):
        launch(
            backward_kernel, programs,
            dy, dy.stride(0), x, x.stride(0), gate, gate.stride(0), scale, dx, dgate, dweight, eps, len(x),
            triton.cdiv(tiles, programs), D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return dx, dgate, dweight.sum(0).to(weight.dtype)


@register_fake(backward_op)
def _(dy: Tensor, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), gate.new_empty(gate.shape), weight.new_empty(weight.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *kept, ctx.eps = inputs
    ctx.save_for_backward(*kept)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *backward_op(dy, *ctx.saved_tensors, ctx.eps), None


register_autograd(forward_op, _backward, _setup)
