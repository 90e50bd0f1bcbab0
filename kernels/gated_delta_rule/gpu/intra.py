"""Work within a chunk: gates, the inverse T, the weights of o.

With q^, k^ the normalised rows, D_ij the decay from token j to token i and b_j = beta_j k^_j (names as in
cpu/chunked.py):

    T       = (I + strict_lower(k^_i . b_j D_ij))^-1
    weights = scale * lower(q^_i . b_j D_ij)

T by blocks of 2, 4, ... 64 on the diagonal, each from the two inverses within it. Powers of the matrix, which a Neumann
series would need, reach 1e9 and more where beta passes 1 and keys are alike; T itself never passes 2. For the same
reason one product of float16 or tf32 is not enough, it is off by 1e-2 in the worst case: see ``_dot``. By the model
behind benchmarks/gpu_check/predictions.py this takes 0.25 to 0.30 ms (with three products of tf32 0.31 to 0.35);
forward substitution in blocks of 16 by a kernel of its own, of one warp, after one that made the weights, took 0.44 to
0.59 together and 0.88 GB: its 15 steps wait for one another. Off by 1.7e-7 where keys went through SiLU and beta is 2,
by 6.8e-6 where all keys are alike to 1e-3; bfloat16, in which T is kept, is off by 1e-3.

Compiled for Hopper, bfloat16, heads of 96/192; bytes and products for 30 heads and 32,768 tokens, programs on one
multiprocessor (benchmarks/kernel_counts.py makes the counts):

    kernel            warps  registers  spilled  shared  programs  bytes    products
    weights, forward      4        127      0 B  24 KiB         4  0.67 GB  42 GFLOP
    weights, backward     4        128      0 B  24 KiB         4  0.52 GB  12 GFLOP
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
    dot_keys,
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
    inverse,
    chunks,
    scale,
    T,
    d,
    L2NORM: tl.constexpr,
    FIRST: tl.constexpr,
):
    """One program per chunk and value head. Writes the weights, and if FIRST the gates before them and the inverse,
    unless that is None; else from gates that are there, without g and beta: 126 MB for 30 heads and 32,768 tokens, in
    every layer of which checkpointing keeps the operator's results, are not kept for the 0.16 ms of making them again.
    In one square with the inverse, a triangle each, they would cost no memory, but the scans would mask both in every
    step: compiled so, they spill 120 to 168 B and forward takes 1.45 times as many cycles a step, backward 1.3.
    g and beta with their strides, see ``Heads``."""
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
    write = gate(gates, NORM_K, o, d) * gate(gates, BETA, o, d)
    decay = pair_decay(gates, o, o, d) * write[None, :]
    pairs = dot_keys(q1, q2, k1, k2, d) * decay * (gate(gates, NORM_Q, o, d) * scale)[:, None]
    tl.store(weights + o[:, None] * d.BT + o[None, :], operand(pairs, d))
    if inverse is not None:
        pairs = dot_keys(k1, k2, k1, k2, d) * decay * gate(gates, NORM_K, o, d)[:, None]
        _write_inverse(square(inverse, row, d), tl.where(o[:, None] > o[None, :], pairs, 0.0), d)


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


@triton.jit
def _write_inverse(inverse, x, d):
    """(I + x)^-1 of a strictly lower triangular x [BT, BT], by blocks on the diagonal. If two neighbours there have the
    inverses A and B, and x has C below A, then the inverse of both has -B C A below A: for blocks of 1, 2, 4, 8 and 16
    on all of the diagonal at once, and then for the two of 32."""
    many: tl.constexpr = d.BT // BLOCK
    o = tl.arange(0, BLOCK)
    apart = o[:, None] ^ o[None, :]
    a = _blocks(x, 0, many, d)
    y = tl.where(apart == 0, 1.0, tl.where(apart == 1, -a, 0.0))
    for shift in tl.static_range(1, 4):
        y -= _dot(_dot(y, tl.where((apart >> shift) == 1, a, 0.0)), y)
    # of two neighbours of 16: the first's inverse beside the second's
    i = tl.arange(0, 2)
    first = (i == 0)[None, :, None, None]
    before = tl.sum(tl.where(first, tl.reshape(y, [many // 2, 2, BLOCK, BLOCK]), 0.0), 1)
    before = tl.where(first, 0.0, tl.expand_dims(before, 1))
    z = -_dot(y, _dot(_blocks(x, 1, many, d), tl.reshape(before, [many, BLOCK, BLOCK])))
    half: tl.constexpr = d.BT // 2
    r, c = (tl.arange(0, many) % 2)[:, None, None, None], i[None, :, None, None]
    both = tl.where(r == c, tl.expand_dims(y, 1), tl.where(r > c, tl.expand_dims(z, 1), 0.0))
    both = tl.reshape(tl.permute(both, (0, 2, 1, 3)), [d.BT, half])
    o, h = tl.arange(0, d.BT), tl.arange(0, half)
    tl.store(inverse + (o * d.BT + o // half * half)[:, None] + h[None, :], operand(both, d))
    y, b = tl.split(tl.permute(tl.reshape(both, [2, half, half]), (1, 2, 0)))
    left, _ = tl.split(tl.permute(tl.reshape(x, [d.BT, 2, half]), (0, 2, 1)))
    _, below = tl.split(tl.permute(tl.reshape(left, [2, half, half]), (1, 2, 0)))
    at = inverse + h[:, None] * d.BT + h[None, :]
    tl.store(at + half, tl.zeros([half, half], d.DOT))
    tl.store(at + half * d.BT, operand(-_dot(b, _dot(below, y)), d))


@triton.jit
def _blocks(x, BACK: tl.constexpr, MANY: tl.constexpr, d):
    """[MANY, BT // MANY, BT // MANY]: of every row of blocks the one on the diagonal, or BACK before it."""
    block: tl.constexpr = d.BT // MANY
    o = tl.arange(0, d.BT)[:, None, None] // block
    mine = o == tl.arange(0, MANY)[None, :, None] + BACK
    x = tl.sum(tl.where(mine, tl.reshape(x, [d.BT, MANY, block]), 0.0), 1)
    return tl.reshape(x, [MANY, block, block])


@triton.jit
def _dot(a, b):
    """As good as float32, from three products of float16, whose 11 bits twice are 22; nothing here nears its range.
    tf32 has as many bits, but its operands lie in other threads than a product's result, and all would have to move."""
    a_high, b_high = a.to(tl.float16), b.to(tl.float16)
    x = tl.dot(_rest(a, a_high), b_high)
    x = tl.dot(a_high, _rest(b, b_high), x)
    return tl.dot(a_high, b_high, x * (1.0 / 2048.0))


@triton.jit
def _rest(x, high):
    """What float16 leaves of x, times 2048: as it is, it would have less than 11 bits wherever x is small."""
    return ((x - high.to(tl.float32)) * 2048.0).to(tl.float16)
