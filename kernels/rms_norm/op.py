"""RMS norm, alone or with the residual's addition, on the tensors' device.

On torch operations backward keeps x, which the residual stream keeps anyway, and one number per token. transformers'
eager norm keeps two more tensors of x's size, and torch's own writes as many; on one CPU core this one takes 0.3 of
either's time, forward and backward together.
"""

from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import check_floats


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> Tensor:
    """
    norm(x), or norm(x) + residual as in a block that norms what it adds. x [..., D], weight [D], residual of x's shape;
    the norm is over D, computed in float32 (float64 for float64). Returns x's shape and dtype, with a residual the
    wider dtype of the two. Differentiable in all three. See reference.py for the equation.
    The tensors' device alone decides the path: on a GPU a Triton kernel, for 32 and 16 bits and D up to 16384, which
    rounds once. Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    _check(x, weight, residual)
    if x.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.rms_norm.gpu.launch import triton_rms_norm

        return triton_rms_norm(x, None, residual, weight, eps)[1]
    y = _norm(x, weight, eps)
    return y if residual is None else residual + y


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """
    The sum x + residual and its norm, as in a block that norms what it reads. Shapes, dtypes, paths and errors as in
    ``rms_norm``; both results have the sum's dtype, and what is normed is the rounded sum.
    """
    _check(x, weight, residual)
    if x.is_cuda:
        from hybrid_ft.kernels.rms_norm.gpu.launch import triton_rms_norm

        return triton_rms_norm(x, residual, None, weight, eps)
    total = residual + x
    return total, _norm(total, weight, eps)


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    check_floats(x=x, weight=weight, **({} if residual is None else {"residual": residual}))
    if tuple(weight.shape) != tuple(x.shape[-1:]):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; it must be x's last size, {tuple(x.shape[-1:])}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual: got shape {tuple(residual.shape)}; it must be x's, {tuple(x.shape)}")


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _RMSNorm.apply(x, weight, eps)
    wide, rstd = _statistics(x, eps)
    return (wide * rstd).mul_(weight).to(x.dtype)


def _statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x in the dtype of the computation, and 1 / sqrt(mean(x^2) + eps) [..., 1]."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    return wide, norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide, rstd = _statistics(x, eps)
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd).mul_(weight).to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        wide, scale = x.to(rstd.dtype), weight.to(rstd.dtype)
        weighted = dy * wide
        dweight = rstd.view(-1) @ weighted.flatten(0, -2) if ctx.needs_input_grad[1] else None
        along = (weighted @ scale).unsqueeze(-1).mul_(rstd**3).div_(-x.shape[-1])
        dx = torch.mul(dy, scale, out=weighted).mul_(rstd).addcmul_(wide, along)
        return dx.to(x.dtype), None if dweight is None else dweight.to(weight.dtype), None
