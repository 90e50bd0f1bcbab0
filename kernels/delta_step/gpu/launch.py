"""The launch of a layer's step as a custom operator.

Nothing waits for the device.
"""

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.delta_step.gpu.kernels import delta_step_kernel
from hybrid_ft.kernels.gated_delta_rule.gpu.step_launch import tile
from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_fake
from hybrid_ft.kernels.rowwise import as_rows, check_gpu, on


def triton_delta_step(
    x: Tensor, a: Tensor, b: Tensor, tail: Tensor, state: Tensor, conv_weight: Tensor, A_log: Tensor, dt_bias: Tensor,
    H: int, allow_neg_eigval: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The op on checked arguments."""
    check_gpu(x=x, a=a, b=b, tail=tail, state=state, conv_weight=conv_weight, A_log=A_log, dt_bias=dt_bias)
    return step_op(x, a, b, tail, state, conv_weight, A_log, dt_bias, H, allow_neg_eigval)


@operator("delta_step")
def step_op(
    x: Tensor, a: Tensor, b: Tensor, tail: Tensor, state: Tensor, conv_weight: Tensor, A_log: Tensor, dt_bias: Tensor,
    H: int, allow_neg_eigval: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """o, the new tail and the new state."""
    (B, HV, K, V), W = state.shape, conv_weight.shape[1]
    o, new_tail, new_state = _outputs(x, tail, state)
    if not B:
        return o, new_tail, new_state
    x, a, b = as_rows(x), as_rows(a), as_rows(b)
    tail, state = (y if y[0].is_contiguous() else y.contiguous() for y in (tail, state))
    BK, BV, warps = tile(K, V)
    with on(x):
        launch(
            delta_step_kernel, B * HV * triton.cdiv(V, BV),
            x, x.stride(0), a, a.stride(0), b, b.stride(0), tail, tail.stride(0), state, state.stride(0),
            conv_weight.contiguous(), A_log.contiguous(), dt_bias.contiguous(), o, new_tail, new_state, K**-0.5,
            H, HV, K, V, W, BK, BV, allow_neg_eigval, num_warps=warps,
        )  # fmt: skip
    return o, new_tail, new_state


@register_fake(step_op)
def _(
    x: Tensor, a: Tensor, b: Tensor, tail: Tensor, state: Tensor, conv_weight: Tensor, A_log: Tensor, dt_bias: Tensor,
    H: int, allow_neg_eigval: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _outputs(x, tail, state)


def _outputs(x: Tensor, tail: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    B, HV, _, V = state.shape
    return x.new_empty(B, HV, V), x.new_empty(tail.shape), x.new_empty(state.shape, dtype=torch.float32)
