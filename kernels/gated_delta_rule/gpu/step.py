"""One token of the delta rule as a Triton kernel.

One token of the gated delta rule as a Triton kernel: a program takes some columns of one head's state, which it reads
once and writes once. That is nearly all there is to move, so the rest is done wherever it is needed.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import exp


@triton.jit
def place(HV: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr):
    """This program's row of the batch and value head, and its rows and columns of the head's state."""
    blocks: tl.constexpr = (V + BV - 1) // BV
    # only what a row is multiplied by may pass 2^31
    row = (tl.program_id(0) // (HV * blocks)).to(tl.int64)
    head = tl.program_id(0) // blocks % HV
    return row, head, tl.arange(0, BK), tl.program_id(0) % blocks * BV + tl.arange(0, BV)


@triton.jit
def advance(S, queries, keys, values, log_decay, strength, L2NORM: tl.constexpr):
    """The new state's S^T q [BV] and the new state [BK, BV], of the old state's columns S; all float32."""
    if L2NORM:
        queries *= tl.rsqrt(tl.sum(queries * queries, 0) + 1e-6)
        keys *= tl.rsqrt(tl.sum(keys * keys, 0) + 1e-6)
    # below the limit a float32 is 0, and exp takes no infinity
    S *= exp(tl.maximum(log_decay, -120.0, propagate_nan=tl.PropagateNan.ALL))
    delta = strength * (values - tl.sum(S * keys[:, None], 0))
    # without waiting for the new state
    read = tl.sum(S * queries[:, None], 0) + tl.sum(queries * keys, 0) * delta
    return read, S + keys[:, None] * delta[None, :]


@triton.jit
def step_kernel(
    q, q_row, q_head, k, k_row, k_head, v, v_row, v_head, g, g_row, beta, beta_row, state, state_row, o, new_state, scale,
    H: tl.constexpr, HV: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
    L2NORM: tl.constexpr,
):  # fmt: skip
    """o [B, HV, V], new_state [B, HV, K, V]. ``row`` and ``head`` are strides; what is not
    strided lies without gaps."""
    row, head, o_k, o_v = place(HV, V, BK, BV)
    shared = head // (HV // H)
    mask = (o_k < K)[:, None] & (o_v < V)[None, :]
    at = head * (K * V) + (o_k[:, None] * V + o_v[None, :])
    # first of all: no load moves up past the sums' barriers
    S = tl.load(state + row * state_row + at, mask=mask, other=0.0).to(tl.float32)
    queries = tl.load(q + row * q_row + (shared * q_head + o_k), mask=o_k < K, other=0.0).to(tl.float32)
    keys = tl.load(k + row * k_row + (shared * k_head + o_k), mask=o_k < K, other=0.0).to(tl.float32)
    values = tl.load(v + row * v_row + (head * v_head + o_v), mask=o_v < V, other=0.0).to(tl.float32)
    log_decay = tl.load(g + row * g_row + head).to(tl.float32)
    strength = tl.load(beta + row * beta_row + head).to(tl.float32)
    read, S = advance(S, queries, keys, values, log_decay, strength, L2NORM)
    tl.store(o + row * (HV * V) + (head * V + o_v), (scale * read).to(o.dtype.element_ty), mask=o_v < V)
    tl.store(new_state + row * (HV * K * V) + at, S, mask=mask)
