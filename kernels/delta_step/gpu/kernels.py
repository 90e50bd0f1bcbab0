"""One token of a Gated DeltaNet layer as one Triton kernel.

One token of a Gated DeltaNet layer as one Triton kernel: the step of the delta rule, whose programs each convolve what
they need of q, k and v and compute their head's gates. Every column block of a head does so again for q and k, whose
inputs are few beside the state."""

import triton
import triton.language as tl

from hybrid_ft.kernels.delta_gates.gpu.kernels import decay, strength
from hybrid_ft.kernels.gated_delta_rule.gpu.step import advance, place
from hybrid_ft.kernels.rowwise import exp
from hybrid_ft.kernels.short_conv.gpu.kernels import convolve_step, move_tail


@triton.jit
def delta_step_kernel(
    x, x_row, a, a_row, b, b_row, tail, tail_row, state, state_row, conv_weight, A_log, dt_bias, o, new_tail, new_state,
    scale,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, ALLOW_NEG_EIGVAL: tl.constexpr,
):  # fmt: skip
    """o [B, HV, V], new_tail [B, W-1, D], new_state [B, HV, K, V]. ``row`` are strides; what is not strided lies
    without gaps. What the separate kernels would store between them is rounded as they would."""
    D: tl.constexpr = 2 * H * K + HV * V
    row, head, o_k, o_v = place(HV, V, BK, BV)
    m_k, m_v = o_k < K, o_v < V
    at = head * (K * V) + (o_k[:, None] * V + o_v[None, :])
    # all loads first: none moves up past the sums' barriers or a division's branches
    S = tl.load(state + row * state_row + at, mask=m_k[:, None] & m_v[None, :], other=0.0).to(tl.float32)
    g = tl.load(a + row * a_row + head).to(tl.float32) + tl.load(dt_bias + head).to(tl.float32)
    rate = tl.load(A_log + head).to(tl.float32)
    beta = tl.load(b + row * b_row + head).to(tl.float32)
    x += row * x_row
    tail += row * tail_row
    o_q = head // (HV // H) * K + o_k
    o_d = 2 * H * K + head * V + o_v
    queries = convolve_step(x, tail, conv_weight, o_q, m_k, D, W).to(x.dtype.element_ty).to(tl.float32)
    keys = convolve_step(x, tail, conv_weight, H * K + o_q, m_k, D, W).to(x.dtype.element_ty).to(tl.float32)
    values = convolve_step(x, tail, conv_weight, o_d, m_v, D, W).to(x.dtype.element_ty).to(tl.float32)
    g = decay(g, -exp(rate))
    beta = strength(beta, ALLOW_NEG_EIGVAL).to(b.dtype.element_ty).to(tl.float32)
    read, S = advance(S, queries, keys, values, g, beta, True)
    tl.store(o + row * (HV * V) + (head * V + o_v), (scale * read).to(o.dtype.element_ty), mask=m_v)
    tl.store(new_state + row * (HV * K * V) + at, S, mask=m_k[:, None] & m_v[None, :])
    new_tail += row * ((W - 1) * D)
    move_tail(x, tail, new_tail, o_d, m_v, D, W)
    # each of a group's programs has q's and k's inputs; one of them writes them
    if (head % (HV // H) == 0) & (tl.program_id(0) % ((V + BV - 1) // BV) == 0):
        move_tail(x, tail, new_tail, o_q, m_k, D, W)
        move_tail(x, tail, new_tail, H * K + o_q, m_k, D, W)
