"""silu(gate) * up: the Triton path as custom operators, opaque to torch.compile."""

from typing import Any

import triton
from torch import Tensor

from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rowwise import as_rows, check_gpu, on, tile
from hybrid_ft.kernels.swiglu.gpu.kernels import backward_kernel, forward_kernel

COLUMNS = 1024


def triton_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The op on checked arguments."""
    check_gpu(gate=gate, up=up)
    return forward_op(gate, up)


@operator("swiglu")
def forward_op(gate: Tensor, up: Tensor) -> Tensor:
    y = gate.new_empty(gate.shape)
    if not y.numel():
        return y
    gate, up = as_rows(gate), as_rows(up)
    (N, D), (BR, BD, warps) = gate.shape, tile(gate.shape[1], COLUMNS)
    with on(gate):
        launch(
            forward_kernel, triton.cdiv(N, BR) * triton.cdiv(D, BD),
            gate, gate.stride(0), up, up.stride(0), y, N, D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return y


@register_fake(forward_op)
def _(gate: Tensor, up: Tensor) -> Tensor:
    return gate.new_empty(gate.shape)


@operator("swiglu_backward")
def backward_op(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """dgate and dup."""
    dgate, dup = gate.new_empty(gate.shape), up.new_empty(up.shape)
    if not dup.numel():
        return dgate, dup
    dy, gate, up = as_rows(dy), as_rows(gate), as_rows(up)
    (N, D), (BR, BD, warps) = gate.shape, tile(gate.shape[1], COLUMNS)
    with on(gate):
        launch(
            backward_kernel, triton.cdiv(N, BR) * triton.cdiv(D, BD),
            dy, dy.stride(0), gate, gate.stride(0), up, up.stride(0), dgate, dup, N, D, BR, BD, num_warps=warps,
        )  # fmt: skip
    return dgate, dup


@register_fake(backward_op)
def _(dy: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), up.new_empty(up.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
    return backward_op(dy, *ctx.saved_tensors)


register_autograd(forward_op, _backward, _setup)
