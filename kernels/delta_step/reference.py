"""One token of a Gated DeltaNet layer by the definitions of its parts.

q, k, v     = silu(conv([tail, x]))
g, beta     = -exp(A_log) softplus(a + dt_bias), 2 sigmoid(b)
o, state    = delta_rule(q, k, v, g, beta), continued from the state
"""

import torch
from torch import Tensor

from hybrid_ft.kernels.delta_gates.reference import delta_gates_reference
from hybrid_ft.kernels.gated_delta_rule.reference import gated_delta_rule_reference
from hybrid_ft.kernels.short_conv.reference import short_conv_reference


def delta_step_reference(
    x: Tensor,
    a: Tensor,
    b: Tensor,
    tail: Tensor,
    state: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    allow_neg_eigval: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """``delta_step``; every row is a segment of one token."""
    B, HV, K, V = state.shape
    y, new_tail = short_conv_reference(
        x, conv_weight, cu_seqlens=torch.arange(B + 1), initial_tail=tail, output_final_tail=True
    )
    keys = (x.shape[1] - HV * V) // 2
    q, k, v = y.split([keys, keys, HV * V], dim=1)
    g, beta = delta_gates_reference(a, b, A_log, dt_bias, allow_neg_eigval)
    o, new_state = gated_delta_rule_reference(
        q.unflatten(1, (-1, K))[:, None],
        k.unflatten(1, (-1, K))[:, None],
        v.unflatten(1, (-1, V))[:, None],
        g[:, None],
        beta[:, None],
        initial_state=state,
        output_final_state=True,
    )
    assert new_tail is not None and new_state is not None
    return o[:, 0], new_tail, new_state
