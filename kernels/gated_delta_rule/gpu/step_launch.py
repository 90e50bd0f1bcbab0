"""The launch of one token's step as a custom operator.

Nothing waits for the device.
"""

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.gpu.step import step_kernel
from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_fake
from hybrid_ft.kernels.rowwise import on

# V columns of a program: at 32 a row of the tile is one line of memory, and one sequence of a 7B model with 30 heads of
# 192 columns has 180 programs.
COLUMNS = 32


def tile(K: int, V: int) -> tuple[int, int, int]:
    """Rows and columns of a program's part of the state, and its warps."""
    BK, BV = triton.next_power_of_2(K), min(COLUMNS, triton.next_power_of_2(V))
    return BK, BV, max(1, BK * BV // 1024)


@operator("gated_delta_rule_step")
def step_op(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scale: float, use_qk_l2norm: bool
) -> tuple[Tensor, Tensor]:
    """o and the new state, of checked arguments."""
    (H, K), (B, HV, V) = q.shape[1:], v.shape
    o, new_state = v.new_empty(B, HV, V), v.new_empty(B, HV, K, V, dtype=torch.float32)
    if not B:
        return o, new_state
    q, k, v, g, beta = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v, g, beta))
    state = state if state[0].is_contiguous() else state.contiguous()
    BK, BV, warps = tile(K, V)
    with on(q):
        launch(
            step_kernel, B * HV * triton.cdiv(V, BV),
            q, q.stride(0), q.stride(1), k, k.stride(0), k.stride(1), v, v.stride(0), v.stride(1), g, g.stride(0),
            beta, beta.stride(0), state, state.stride(0), o, new_state, scale, H, HV, K, V, BK, BV, use_qk_l2norm,
            num_warps=warps,
        )  # fmt: skip
    return o, new_state


@register_fake(step_op)
def _(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, scale: float, use_qk_l2norm: bool
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), v.new_empty(state.shape, dtype=torch.float32)
