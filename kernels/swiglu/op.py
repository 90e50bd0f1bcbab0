"""silu(gate) * up on the tensors' device.

silu(gate) * up: arguments checked, then run on the tensors' device. Backward keeps the two inputs alone and computes
silu(gate) again.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import check_floats


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """
    gate and up of one shape and dtype, which the result has too; each step is rounded to it, as in an eager MLP.
    Differentiable in both. See reference.py for the equation.
    The tensors' device alone decides the path: on a GPU Triton kernels, for 32 and 16 bits, which round once.
    Raises ValueError, one line, for shapes that differ or dtypes that do not fit.
    """
    check_floats(gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(f"up: got shape {tuple(up.shape)}; it must be gate's, {tuple(gate.shape)}")
    if gate.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.swiglu.gpu.launch import triton_swiglu

        return triton_swiglu(gate, up)
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return _SwiGLU.apply(gate, up)
    return F.silu(gate).mul_(up)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, F.silu(gate).mul_(dy)
