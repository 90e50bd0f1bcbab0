"""The short convolution's Triton path as custom operators.

Nothing waits for the device.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rowwise import as_rows, check_gpu, on
from hybrid_ft.kernels.short_conv.gpu.kernels import (
    backward_kernel,
    final_tail_kernel,
    forward_kernel,
    initial_tail_kernel,
    step_kernel,
)

# Tokens, channels and warps of a tile. Forward has 16 numbers to a thread: with 32 the shifted loads do not fit into
# the registers. Backward has half as many, as it holds a gradient beside them, but more tokens, of which W-1 are the
# next tile's, for fewer partial sums.
TILE = {"BT": 32, "BD": 64, "num_warps": 4}
BACKWARD_TILE = {"BT": 64, "BD": 32, "num_warps": 8}
WIDEST = 7
# Of one token's step: few, since all that a GPU has to do for one row are some thousands of channels.
STEP_CHANNELS = 128


def triton_short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_tail: Tensor | None,
    output_final_tail: bool,
    activate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """The op on checked arguments."""
    optional = {"bias": bias, "initial_tail": initial_tail}
    check_gpu(x=x, weight=weight, **{name: tensor for name, tensor in optional.items() if tensor is not None})
    if weight.shape[1] > WIDEST:
        raise ValueError(f"weight: got a width of {weight.shape[1]}; on a GPU it must be at most {WIDEST}")
    if cu_seqlens is None:
        cu_seqlens = torch.arange(2, device=x.device) * x.shape[0]
    y, final_tail = forward_op(x, weight, bias, cu_seqlens.to(x.device), initial_tail, output_final_tail, activate)
    return y, final_tail if output_final_tail else None


def _final_memory(x: Tensor, weight: Tensor, cu_seqlens: Tensor, there: bool) -> Tensor:
    return x.new_empty((cu_seqlens.shape[0] - 1, weight.shape[1] - 1, x.shape[1]) if there else 0)


def _initial_memory(x: Tensor, initial_tail: Tensor | None) -> Tensor:
    return x.new_empty(0) if initial_tail is None else initial_tail.new_empty(initial_tail.shape)


@operator("short_conv")
def forward_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_tail: Tensor | None,
    output_final_tail: bool,
    activate: bool = True,
) -> tuple[Tensor, Tensor]:
    """y, and the final tail or nothing."""
    (N, D), W, S = x.shape, weight.shape[1], cu_seqlens.shape[0] - 1
    y, final_tail = x.new_empty(N, D), _final_memory(x, weight, cu_seqlens, output_final_tail)
    x, weight, bias = as_rows(x), weight.contiguous(), None if bias is None else bias.contiguous()
    tail = None if initial_tail is None else initial_tail.contiguous()
    with on(x):
        if y.numel():
            launch(
                forward_kernel, _grid(N, D, TILE),
                x, x.stride(0), weight, bias, tail, cu_seqlens, y, N, S, S.bit_length(), D, W, activate, **TILE,
            )  # fmt: skip
        if final_tail.numel():
            BD, warps = _channels(D)
            launch(
                final_tail_kernel, S * triton.cdiv(D, BD),
                x, x.stride(0), tail, cu_seqlens, final_tail, D, W, BD, num_warps=warps,
            )  # fmt: skip
    return y, final_tail


@register_fake(forward_op)
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_tail: Tensor | None,
    output_final_tail: bool,
    activate: bool = True,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _final_memory(x, weight, cu_seqlens, output_final_tail)


@operator("short_conv_backward")
def backward_op(
    dy: Tensor,
    d_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_tail: Tensor | None,
    activate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dweight, dbias or nothing, and the gradient of the initial tail or nothing."""
    (N, D), W, S = x.shape, weight.shape[1], cu_seqlens.shape[0] - 1
    dx = x.new_empty(N, D)
    tiles, rows = triton.cdiv(N, BACKWARD_TILE["BT"] - W + 1), W if bias is None else W + 1
    dtaps = x.new_empty(tiles, rows, D, dtype=torch.float32)
    dtail = _initial_memory(x, initial_tail)
    x, dy, weight = as_rows(x), as_rows(dy), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    tail = None if initial_tail is None else initial_tail.contiguous()
    d_final = None if d_final is None else d_final.contiguous()
    read = x, x.stride(0), weight, bias, tail, cu_seqlens
    with on(x):
        if dx.numel():
            counts = N, S, S.bit_length()
            launch(
                backward_kernel, tiles * triton.cdiv(D, BACKWARD_TILE["BD"]),
                *read, dy, dy.stride(0), d_final, dx, dtaps, *counts, D, W, activate, **BACKWARD_TILE,
            )  # fmt: skip
        if dtail.numel():
            BD, warps = _channels(D)
            launch(
                initial_tail_kernel, S * triton.cdiv(D, BD),
                *read[:5], dy, dy.stride(0), d_final, cu_seqlens, dtail, D, W, activate, BD, num_warps=warps,
            )  # fmt: skip
    sums = dtaps.sum(0)
    dbias = x.new_empty(0) if bias is None else sums[W].to(bias.dtype, copy=True)
    return dx, sums[:W].T.contiguous().to(weight.dtype), dbias, dtail


@register_fake(backward_op)
def _(
    dy: Tensor,
    d_final: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor,
    initial_tail: Tensor | None,
    activate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias, _initial_memory(x, initial_tail)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    *kept, ctx.output_final_tail, ctx.activate = inputs
    ctx.save_for_backward(*kept)


def _backward(ctx: Any, dy: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, cu_seqlens, initial_tail = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    # the gradient of a final tail that was not asked for has no rows
    d_final = d_final if ctx.output_final_tail else None
    dx, dweight, dbias, dtail = backward_op(dy, d_final, x, weight, bias, cu_seqlens, initial_tail, ctx.activate)
    return dx, dweight, None if bias is None else dbias, None, None if initial_tail is None else dtail, None, None


register_autograd(forward_op, _backward, _setup)


def triton_short_conv_step(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The step on checked arguments."""
    check_gpu(x=x, tail=tail, weight=weight)
    return step_op(x, tail, weight)


@operator("short_conv_step")
def step_op(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """y and the new tail."""
    (B, D), W = x.shape, weight.shape[1]
    y, new_tail = x.new_empty(B, D), x.new_empty(B, W - 1, D)
    if not y.numel():
        return y, new_tail
    x, weight = as_rows(x), weight.contiguous()
    tail = tail if tail[0].is_contiguous() else tail.contiguous()
    BD = min(STEP_CHANNELS, triton.next_power_of_2(D))
    with on(x):
        launch(
            step_kernel, B * triton.cdiv(D, BD),
            x, x.stride(0), tail, tail.stride(0), weight, y, new_tail, D, W, BD, num_warps=max(1, BD // 64),
        )  # fmt: skip
    return y, new_tail


@register_fake(step_op)
def _(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(tail.shape)


def _grid(N: int, D: int, tile: dict[str, int]) -> int:
    return triton.cdiv(N, tile["BT"]) * triton.cdiv(D, tile["BD"])


def _channels(D: int) -> tuple[int, int]:
    """Of a tile of one row, and its warps."""
    channels = min(512, triton.next_power_of_2(D))
    return channels, max(1, channels // 128)
