"""RMS norm of a layer's heads, gated by silu, on the tensors' device.

On torch operations backward keeps the inputs and one number per head. Rows are worked on in runs that stay in a CPU
core's cache, every step of the formula on one run before the next run."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import check_floats


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """
    x and gate of one shape [..., D], weight [D]; the norm is over D, its statistics in float32 (float64 for float64).
    Returns x's shape and dtype. Differentiable in x, gate and weight. See reference.py for the equation.
    The tensors' device alone decides the path: on a GPU Triton kernels, for 32 and 16 bits and D up to 16384.
    Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    check_floats(x=x, gate=gate, weight=weight)
    if gate.shape != x.shape:
        raise ValueError(f"gate: got shape {tuple(gate.shape)}; it must be x's, {tuple(x.shape)}")
    if x.ndim < 1 or tuple(weight.shape) != tuple(x.shape[-1:]):
        raise ValueError(f"weight: got shape {tuple(weight.shape)}; it must be x's last size, {tuple(x.shape[-1:])}")
    if x.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.gated_rms_norm.gpu.launch import triton_gated_rms_norm

        return triton_gated_rms_norm(x, gate, weight, eps)
    return _gated_rms_norm(x, gate, weight, eps)


@torch.compiler.disable  # inference mode's tensors fit no graph
def _gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _GatedRMSNorm.apply(x, gate, weight, eps)


class _GatedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        rstd = torch.empty((*x.shape[:-1], 1), dtype=_wide(x), device=x.device)
        with torch.inference_mode():
            scale = weight.to(rstd.dtype)
            for x_run, gate_run, rstd_run, y_run in _runs(x, gate, rstd, y):
                wide = x_run.to(rstd.dtype)
                norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
                torch.rsqrt(norm.square_().div_(len(weight)).add_(eps), out=rstd_run)
                normed = (wide * rstd_run).mul_(scale)
                torch.mul(normed, F.silu(gate_run.to(rstd.dtype)), out=y_run)
        ctx.save_for_backward(x, gate, weight, rstd)
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, weight, rstd = ctx.saved_tensors
        dx, dgate = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (x, gate))
        dweight = rstd.new_zeros(weight.shape)
        with torch.inference_mode():
            scale = weight.to(rstd.dtype)
            for x_run, gate_run, rstd_run, dy_run, dx_run, dgate_run in _runs(x, gate, rstd, dy, dx, dgate):
                normed = x_run.to(rstd.dtype) * rstd_run
                gate_wide, dy_wide = gate_run.to(rstd.dtype), dy_run.to(rstd.dtype)
                dscaled = F.silu(gate_wide).mul_(dy_wide)
                product = dscaled * normed
                dweight += product.flatten(0, -2).sum(0)
                mean = (product @ scale).unsqueeze(-1).div_(len(weight))
                dgated = torch.mul(normed, scale, out=product).mul_(dy_wide)
                torch.ops.aten.silu_backward.grad_input(dgated, gate_wide, grad_input=dgate_run)
                torch.mul(dscaled.mul_(scale).addcmul_(normed, mean, value=-1), rstd_run, out=dx_run)
        return dx, dgate, dweight.to(weight.dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _runs(first: Tensor, *others: Tensor) -> zip:
    """The same rows of every tensor, run by run; views where the tensors' strides allow."""
    heads = first.shape[-2:-1] if first.ndim > 2 else ()
    per_row = max(1, math.prod(heads) * first.shape[-1])
    rows = max(1, 2**16 // per_row) if first.device.type == "cpu" else max(1, first.numel())
    tensors = (first, *others) if first.numel() else ()
    return zip(*(x.reshape(-1, *heads, x.shape[-1]).split(rows) for x in tensors))
