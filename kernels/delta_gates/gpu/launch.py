"""The gates' Triton path as custom operators, opaque to torch.compile."""

from typing import Any

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.delta_gates.gpu.kernels import backward_kernel, forward_kernel
from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rowwise import PROGRAMS, as_rows, check_gpu, on


def triton_delta_gates(
    a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool
) -> tuple[Tensor, Tensor]:
    """The op on checked arguments."""
    check_gpu(a=a, b=b, A_log=A_log, dt_bias=dt_bias)
    return forward_op(a, b, A_log, dt_bias, allow_neg_eigval)


@operator("delta_gates")
def forward_op(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool) -> tuple[Tensor, Tensor]:
    """g and beta."""
    g, beta, HV = a.new_empty(a.shape, dtype=torch.float32), b.new_empty(b.shape), a.shape[-1]
    if not g.numel():
        return g, beta
    a, b = as_rows(a), as_rows(b)
    BR, BD, warps = _tile(HV)
    with on(a):
        launch(
            forward_kernel, triton.cdiv(len(a), BR) * triton.cdiv(HV, BD),
            a, a.stride(0), b, b.stride(0), A_log.contiguous(), dt_bias.contiguous(), g, beta, len(a), HV, BR, BD,
            allow_neg_eigval, num_warps=warps,
        )  # fmt: skip
    return g, beta


@register_fake(forward_op)
def _(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape, dtype=torch.float32), b.new_empty(b.shape)


@operator("delta_gates_backward")
def backward_op(
    dg: Tensor, dbeta: Tensor, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """da, db, dA_log, ddt_bias."""
    da, db, HV = a.new_empty(a.shape), b.new_empty(b.shape), a.shape[-1]
    if not da.numel():
        return da, db, A_log.new_zeros(A_log.shape), dt_bias.new_zeros(dt_bias.shape)
    dg, dbeta, a, b = as_rows(dg), as_rows(dbeta), as_rows(a), as_rows(b)
    BR, BD, warps = _tile(HV)
    tiles = triton.cdiv(len(a), BR)
    programs = min(PROGRAMS, tiles)
    d_log, d_bias = (a.new_empty(programs, HV, dtype=torch.float32) for _ in range(2))
    with on(a):
        launch(
            backward_kernel, programs * triton.cdiv(HV, BD),
            dg, dg.stride(0), dbeta, dbeta.stride(0), a, a.stride(0), b, b.stride(0), A_log.contiguous(),
            dt_bias.contiguous(), da, db, d_log, d_bias, len(a), triton.cdiv(tiles, programs), programs * BR,
            HV, BR, BD, allow_neg_eigval, num_warps=warps,
        )  # fmt: skip
    return da, db, d_log.sum(0).to(A_log.dtype), d_bias.sum(0).to(dt_bias.dtype)


@register_fake(backward_op)
def _(
    dg: Tensor, dbeta: Tensor, a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    da, db, d_log, d_bias = (x.new_empty(x.shape) for x in (a, b, A_log, dt_bias))
    return da, db, d_log, d_bias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *kept, ctx.allow_neg_eigval = inputs
    ctx.save_for_backward(*kept)


def _backward(ctx: Any, dg: Tensor, dbeta: Tensor) -> tuple[Tensor | None, ...]:
    return *backward_op(dg, dbeta, *ctx.saved_tensors, ctx.allow_neg_eigval), None


register_autograd(forward_op, _backward, _setup)


def _tile(HV: int) -> tuple[int, int, int]:
    """Rows, columns and warps of a tile. It is small for the sake of enough programs, as rows are short: of 8192 tokens
    and 30 heads, 256."""
    columns = min(triton.next_power_of_2(HV), 256)
    return 1024 // columns, columns, 4
