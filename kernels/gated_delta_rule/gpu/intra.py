"""Work within a chunk: gates, the inverse T, the weights of o.

With q^, k^ the normalised rows, D_ij the decay from token j to token i and b_j = beta_j k^_j (names as in cpu/chunked.py):

    T       = (I + strict_lower(k^_i . b_j D_ij))^-1
    weights = scale * lower(q^_i . b_j D_ij)

T by forward substitution in diagonal blocks of 16, then block by block below them. Powers of the matrix, which a
Neumann series would need, reach 1e9 and more where beta passes 1 and keys are alike; T itself never passes 2. For the
same reason the blocks are multiplied in three-pass tf32: one pass is off by 1e-2 in the worst case.

Compiled for Hopper, bfloat16, heads of 96/192; bytes and products for 30 heads and 32,768 tokens, programs on one
multiprocessor (benchmarks/kernel_counts.py makes the counts):

    kernel            warps  registers  spilled  shared  programs  bytes    products
    weights, forward      4        103      0 B  24 KiB         4  0.55 GB  12 GFLOP
    weights, backward     4         94      0 B  24 KiB         5  0.52 GB  12 GFLOP
    inverse               1        192      0 B   1 KiB         8  0.33 GB  17 GFLOP
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    BETA,
    CUM,
    CUM_REST,
    NORM_K,
    NORM_Q,
    READ_K,
    READ_Q,
    WRITE_K,
    at_token,
    dot,
    dot_keys,
    dot_rows,
    forget,
    gate,
    gates_of,
    load_keys,
    operand,
    pair_decay,
    place,
    publish,
    square,
    token,
)
from hybrid_ft.kernels.gated_delta_rule.reference import NORM_EPS

EPS = tl.constexpr(NORM_EPS)
LOG2_E = tl.constexpr(1.4426950408889634)
# A token's log decay, base 2, is cut off here, far below what float32 can hold as a decay, to keep the sums exact.
LOWEST = tl.constexpr(-1024.0)
BLOCK = tl.constexpr(16)


# What a batch's length decides, as it does the strides of rates and where in them a level of a tree begins, is not
# compiled in: each of eight alignments would be compiled when it first occurs, in the middle of training.
@triton.jit(
    do_not_specialize=["g", "g_b", "g_t", "g_h", "beta", "beta_b", "beta_t", "beta_h", "T"],
)
def weights_kernel(
    q,
    k,
    g,
    g_b,
    g_t,
    g_h,
    beta,
    beta_b,
    beta_t,
    beta_h,
    gates,
    weights,
    chunks,
    scale,
    T,
    d,
    L2NORM: tl.constexpr,
    FIRST: tl.constexpr,
):
    """One program per chunk and value head. Writes the weights, and if FIRST the gates before them; else from gates that
    are there: backward computes the weights again rather than keep them. g and beta with their strides, see ``Heads``."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    key_head = head // (d.HV // d.H)
    gates = gates_of(gates, row, d)
    weights = square(weights, row, d)

    o = tl.arange(0, d.BT)
    here = o < left
    queries, keys = token(q, start, key_head, T), token(k, start, key_head, T)
    q1, q2 = load_keys(queries, q.t, o, here, d)
    k1, k2 = load_keys(keys, k.t, o, here, d)
    if FIRST:
        norm_q = _norm(q1, q2, here, L2NORM, d)
        norm_k = _norm(k1, k2, here, L2NORM, d)
        log_decay = tl.load(at_token(g, g_b, g_t, g_h, start, head, T) + o * g_t, mask=here, other=0.0)
        b = tl.load(at_token(beta, beta_b, beta_t, beta_h, start, head, T) + o * beta_t, mask=here, other=0.0)
        b = b.to(tl.float32)
        _write_gates(gates, log_decay, b, norm_q, norm_k, scale, o, d)
        publish()
    read = gate(gates, NORM_Q, o, d) * scale
    write = gate(gates, NORM_K, o, d) * gate(gates, BETA, o, d)
    pairs = dot_keys(q1, q2, k1, k2, d) * read[:, None] * write[None, :] * pair_decay(gates, o, o, d)
    tl.store(weights + o[:, None] * d.BT + o[None, :], operand(pairs, d))


@triton.jit
def _norm(x1, x2, here, L2NORM: tl.constexpr, d):
    """One over the length of every row; 0 where there is no token."""
    if L2NORM:
        square = tl.sum(x1.to(tl.float32) * x1.to(tl.float32), 1)
        if d.K2:
            square += tl.sum(x2.to(tl.float32) * x2.to(tl.float32), 1)
        norm = tl.where(here, 1.0 / tl.sqrt(square + EPS), 0.0)
    else:
        norm = tl.where(here, 1.0, 0.0)
    return norm


@triton.jit
def _write_gates(gates, log_decay, beta, norm_q, norm_k, scale, o, d):
    log_decay = log_decay.to(tl.float64) * LOG2_E
    log_decay = tl.where(log_decay < LOWEST, LOWEST, log_decay)
    cum = tl.cumsum(log_decay, 0)
    coarse, rest = _split(cum)
    from_start = tl.exp2(coarse) * tl.exp2(rest)
    coarse_to_end, rest_to_end = _split(tl.sum(log_decay, 0) - cum)
    to_end = tl.exp2(coarse_to_end) * tl.exp2(rest_to_end)
    tl.store(gates + READ_Q * d.BT + o, from_start * norm_q * scale)
    tl.store(gates + READ_K * d.BT + o, from_start * norm_k)
    tl.store(gates + WRITE_K * d.BT + o, to_end * norm_k * beta)
    tl.store(gates + CUM * d.BT + o, coarse)
    tl.store(gates + CUM_REST * d.BT + o, rest)
    tl.store(gates + BETA * d.BT + o, beta)
    tl.store(gates + NORM_Q * d.BT + o, norm_q)
    tl.store(gates + NORM_K * d.BT + o, norm_k)


@triton.jit
def _split(x):
    """A float64 in 64ths, exact in float32, and the rest."""
    coarse = tl.floor(x * 64.0) / 64.0
    return coarse.to(tl.float32), (x - coarse).to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def inverse_kernel(k, gates, inverse, chunks, T, d):
    """T, one program per chunk and value head, from the gates: X_ii of the diagonal blocks, then X_ij = -X_ii times the
    sum over j <= m < i of L_im X_mj."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    gates = gates_of(gates, row, d)
    inverse = square(inverse, row, d)
    keys = token(k, start, head // (d.HV // d.H), T)
    # Each block is stored as soon as it is there: the next _pairs waits for that, so that nothing piles up in registers.
    none = tl.zeros([BLOCK, BLOCK], tl.float32)
    x00 = _inverse_block(gates, keys, k.t, left, 0, d)
    _store_blocks(inverse, 0, x00, none, none, none, d)
    if d.BT > 16:
        x11 = _inverse_block(gates, keys, k.t, left, 16, d)
        x10 = -dot(x11, dot(_pairs(gates, keys, k.t, left, 16, 0, d), x00))
        _store_blocks(inverse, 16, x10, x11, none, none, d)
    if d.BT > 32:
        x22 = _inverse_block(gates, keys, k.t, left, 32, d)
        l21 = _pairs(gates, keys, k.t, left, 32, 16, d)
        x21 = -dot(x22, dot(l21, x11))
        x20 = -dot(x22, dot(_pairs(gates, keys, k.t, left, 32, 0, d), x00) + dot(l21, x10))
        _store_blocks(inverse, 32, x20, x21, x22, none, d)
        x33 = _inverse_block(gates, keys, k.t, left, 48, d)
        l32 = _pairs(gates, keys, k.t, left, 48, 32, d)
        x32 = -dot(x33, dot(l32, x22))
        sum1, sum0 = dot(l32, x21), dot(l32, x20)
        l31 = _pairs(gates, keys, k.t, left, 48, 16, d)
        x31 = -dot(x33, dot(l31, x11) + sum1)
        sum0 += dot(l31, x10)
        x30 = -dot(x33, dot(_pairs(gates, keys, k.t, left, 48, 0, d), x00) + sum0)
        _store_blocks(inverse, 48, x30, x31, x32, x33, d)


@triton.jit
def _pairs(gates, keys, k_t, left, row, col, d):
    """k^_i . b_j D_ij for 16 tokens i from ``row`` on and 16 tokens j from ``col`` <= ``row`` on."""
    forget()  # ten products' keys
    o_i = row + tl.arange(0, BLOCK)
    o_j = col + tl.arange(0, BLOCK)
    products = dot_rows(keys, k_t, o_i, keys, k_t, o_j, left, d)
    read = gate(gates, NORM_K, o_i, d)
    write = gate(gates, NORM_K, o_j, d) * gate(gates, BETA, o_j, d)
    return products * read[:, None] * write[None, :] * pair_decay(gates, o_i, o_j, d)


@triton.jit
def _inverse_block(gates, keys, k_t, left, row, d):
    """Forward substitution for a diagonal block: row i of the inverse is e_i - sum over j < i of L_ij times row j."""
    o = tl.arange(0, BLOCK)
    # The transpose: a row of L is then a column, which lies as the rows that it weighs do.
    upper = tl.trans(_pairs(gates, keys, k_t, left, row, row, d))
    x = tl.where(o[:, None] == o[None, :], 1.0, 0.0)
    for i in range(1, BLOCK):
        weights = tl.sum(tl.where((o[None, :] == i) & (o[:, None] < i), upper, 0.0), 1)
        x = tl.where(o[:, None] == i, x - tl.sum(weights[:, None] * x, 0)[None, :], x)
    return x


@triton.jit
def _store_blocks(inverse, row, a, b, c, e, d):
    """One row of blocks."""
    o = tl.arange(0, BLOCK)
    at = inverse + (row + o)[:, None] * d.BT + o[None, :]
    tl.store(at, operand(a, d))
    if d.BT > 16:
        tl.store(at + 16, operand(b, d))
    if d.BT > 32:
        tl.store(at + 32, operand(c, d))
        tl.store(at + 48, operand(e, d))
