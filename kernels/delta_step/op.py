"""One token of a Gated DeltaNet layer, between projections and norm.

One token of a Gated DeltaNet layer between its projections and its norm: arguments checked, then run on the tensors'
device.
"""

import torch
from torch import Tensor

from hybrid_ft.kernels.delta_gates.op import check_gates, delta_gates
from hybrid_ft.kernels.gated_delta_rule.checks import check_gpu_head_sizes, check_state
from hybrid_ft.kernels.gated_delta_rule.cpu.decode import gated_delta_rule_step
from hybrid_ft.kernels.short_conv.op import check_step, short_conv_step


@torch.no_grad()
def delta_step(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    tail: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    *,
    allow_neg_eigval: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    One token per row. x [B, D], the projected q, k and v side by side, D = 2 H K + HV V; a, b [B, HV]; tail [B, W-1, D]
    and state [B, HV, K, V], both left as they are; conv_weight [D, W]; A_log, dt_bias [HV]. HV is a multiple of H.
    Returns o [B, HV, V] and the new tail, both in x's dtype, and the new state in float32 (float64 for float64 inputs).
    No gradients. See reference.py for the equations.
    The tensors' device alone decides the path: on a CPU short_conv_step, delta_gates and gated_delta_rule_step, on a
    GPU one Triton kernel, which rounds where these do, for 32 and 16 bits and head sizes that are multiples of 16 from
    16 to 256.
    Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    check_step(x, tail, conv_weight)
    check_gates(a, b, A_log, dt_bias)
    H = _query_heads(x, a, state)
    B, HV, K, V = state.shape
    if x.is_cuda:
        check_gpu_head_sizes(K, V)
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.delta_step.gpu.launch import triton_delta_step

        return triton_delta_step(x, a, b, tail, state, conv_weight, A_log, dt_bias, H, allow_neg_eigval)
    y, new_tail = short_conv_step(x, tail, conv_weight)
    q, k, v = y.split([H * K, H * K, HV * V], dim=-1)
    g, beta = delta_gates(a, b, A_log, dt_bias, allow_neg_eigval=allow_neg_eigval)
    o, new_state = gated_delta_rule_step(q.view(B, H, K), k.view(B, H, K), v.view(B, HV, V), g, beta, state)
    return o, new_tail, new_state


def _query_heads(x: Tensor, a: Tensor, state: Tensor) -> int:
    """H, which the sizes of x and the state leave no choice in."""
    if state.ndim != 4 or not all(state.shape[1:]):
        raise ValueError(f"state: got shape {tuple(state.shape)}; it must be [B, HV, K, V]")
    HV, K, V = state.shape[1:]
    check_state("state", state, (len(x), HV, K, V))
    if a.shape != state.shape[:2]:
        raise ValueError(f"a: got shape {tuple(a.shape)}; it must be the state's [B, HV], {tuple(state.shape[:2])}")
    H, rest = divmod(x.shape[1] - HV * V, 2 * K)
    if rest or H < 1 or HV % H:
        raise ValueError(
            f"x: got {x.shape[1]} channels; they must be 2 H K + HV V, for a state of HV, K, V = {HV}, {K}, {V} and "
            "heads H of which HV is a multiple"
        )
    return H
