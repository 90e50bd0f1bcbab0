"""Gradients of q, k, beta and g, chunk by chunk.

Rows are tokens, S is the state at the chunk's start, dS' the gradient of the one at its end
(names as in cpu/chunked.py):

    E  = scale * lower(dO Y^T) * D              F  = -strict_lower(dV Y^T) * D
    dq^ = scale exp(c) dO S^T + E B             dk^ = -exp(c) dV S^T + F B        the part where k reads the state
    dB  = exp(c_last - c) Y dS'^T + E^T q^ + F^T k^                               the part where it is written

(F = 0 and no dk^ so far where nothing is corrected), then dbeta = k^ . dB, dk^ += beta dB, the gradient of the norms,
and dg from every product of a weight and its gradient whose decay a token's gate is part of. The diagonal of E has no
decay in it and is left out of dg: it would cancel in exact arithmetic only.

Two kernels, q's and then k's, and in k's two loops over V: the accumulators of all do not fit into the registers. E and
F go to k's products through memory (``pairs``, [NT, HV, BT, BT]; F^T above the diagonal, where E is 0): the transpose
of an accumulator as a product's operand is miscompiled for Hopper by Triton 3.4 to 3.7.0. Where
keys are loaded again behind a barrier, the compiler would otherwise hold them in registers that it does not have.

Factors: dq and dk are of the raw rows, but for the norms' own gradient, and dB is kept times k's norm, without the beta
that dbeta must not be divided by.

Compiled for Hopper, bfloat16, heads of 96/192; bytes and products for 30 heads and 32,768 tokens, programs on one
multiprocessor (benchmarks/kernel_counts.py makes the counts):

    kernel            warps  registers  spilled  shared  programs  bytes    products
    query                 4        250      0 B  84 KiB         2  2.05 GB  85 GFLOP
    key                   4        255     64 B  84 KiB         2  2.62 GB  145 GFLOP

What a program of k's reads twice, Y and S, counts once: it has it from the cache. <S, dS'> is made there, so that q's
does not read dS' at all (2.62 GB). Three stages, as many as V = 192 has steps of 64: all loads of a loop are under way
from its start.

One kernel instead, with one loop over V, was compiled and not taken: it moves 3.2 GB for 4.7, but takes 255 registers
of 8 warps and 8 B, so that a multiprocessor holds one program, which waits for each of its loads. By the model behind
benchmarks/gpu_check/predictions.py the wait and the issue take 1.61 ms (1.54 with V 32 columns at a time in 4 stages),
those of the two kernels 1.49; at two programs, 128 registers, 512 B do not fit. With a loop for what reads the state,
one for what is written, and E^T and F^T as products of their own, nothing goes through memory, but 128 registers of 8
warps leave 608 B (1.79 ms), 255 of 4 warps 896 B (1.64). At three quarters of 4.3 TB/s the bytes of the two kernels
take 1.45 ms: a GPU has to say which is faster.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.gradient_tiles import (
    add_product,
    add_square,
    decay_to_end,
    key_zeros,
    read_products,
    scale_rows,
    store_keys,
    write_factor,
    write_products,
)
from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    BETA,
    NORM_K,
    NORM_Q,
    READ_K,
    READ_Q,
    chunk_decay,
    dot_keys,
    dot_onto,
    forget,
    gate,
    gates_of,
    load_keys,
    load_rows,
    operand,
    pair_decay,
    place,
    publish,
    square,
    state,
    token,
)


@triton.jit(do_not_specialize=["T"])
def query_kernel(
    q,
    k,
    do,
    gates,
    pairs,
    y,
    states,
    dq,
    change,
    chunks,
    scale,
    T,
    d,
    BV: tl.constexpr,
    L2NORM: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per chunk and value head. Writes that head's share of dq [B, T, HV, K], its part of ``change``
    [NT, HV, BT], which is what each token reads, less what it wrote that later tokens of the chunk read, and E over
    ``pairs``."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    o = tl.arange(0, d.BT)
    here = o < left
    key_head = head // (d.HV // d.H)
    gates = gates_of(gates, row, d)
    out = start * d.HV + head
    e = tl.zeros([d.BT, d.BT], tl.float32)
    dq1, dq2 = key_zeros(d)
    outputs = token(do, start, head, T)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        do_rows = load_rows(outputs, do.t, o, o_v, here, d.V, d.V % BV == 0)
        y_rows = load_rows(y + out * d.V, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(state(states, row, d), d.K, o_v, o_v < d.V, d)
        e = dot_onto(e, do_rows, tl.trans(y_rows))
        dq1, dq2 = add_product(dq1, dq2, do_rows, s1, s2, d)

    norm = gate(gates, NORM_Q, o, d)
    e = e * pair_decay(gates, o, o, d) * (scale * norm)[:, None]
    pairs = square(pairs, row, d)
    tl.store(pairs + o[:, None] * d.BT + o[None, :], operand(e, d))
    weighted = e * write_factor(gates, o, d)[None, :]
    publish()
    queries, keys = token(q, start, key_head, T), token(k, start, key_head, T)
    q1, q2 = load_keys(queries, q.t, o, here, d)
    k1, k2 = load_keys(keys, k.t, o, here, d)
    later = o[:, None] > o[None, :]
    shared = tl.where(later, weighted * dot_keys(q1, q2, k1, k2, d), 0.0)
    dq1, dq2, read = scale_rows(dq1, dq2, gate(gates, READ_Q, o, d), q1, q2, d)
    read += tl.sum(shared, 1) - tl.sum(shared, 0)
    tl.store(change + row * d.BT + o, read)
    publish()
    k1, k2 = load_keys(keys, k.t, o, here, d)
    dq1, dq2 = add_product(dq1, dq2, operand(weighted, d), k1, k2, d)
    forget()
    q1, q2 = load_keys(queries, q.t, o, here, d)
    store_keys(dq + out * d.K, dq1, dq2, q1, q2, norm, o, here, d, L2NORM)


@triton.jit(do_not_specialize=["T"])
def key_kernel(
    q,
    k,
    gates,
    pairs,
    y,
    states,
    d_states,
    dv,
    dk,
    dg,
    dbeta,
    change,
    chunks,
    T,
    d,
    BV: tl.constexpr,
    L2NORM: tl.constexpr,
    STAGES: tl.constexpr,
    CORRECT: tl.constexpr,
):
    """One program per chunk and value head, after ``query_kernel``, whose ``change`` it completes; dk [B, T, HV, K] is
    that head's share."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    o = tl.arange(0, d.BT)
    here = o < left
    key_head = head // (d.HV // d.H)
    gates = gates_of(gates, row, d)
    pairs = square(pairs, row, d)
    out = start * d.HV + head
    change += row * d.BT
    y += out * d.V
    if CORRECT:
        f, dk1, dk2 = read_products(y, dv + out * d.V, state(states, row, d), o, here, d, BV, STAGES)
        later = o[:, None] > o[None, :]
        f = tl.where(later, -f * pair_decay(gates, o, o, d), 0.0) * gate(gates, NORM_K, o, d)[:, None]
        tl.store(pairs + o[None, :] * d.BT + o[:, None], operand(f, d), mask=later)
        weighted = f * write_factor(gates, o, d)[None, :]
        publish()
        keys = token(k, start, key_head, T)
        k1, k2 = load_keys(keys, k.t, o, here, d)
        shared = weighted * dot_keys(k1, k2, k1, k2, d)
        dk1, dk2, read = scale_rows(dk1, dk2, -gate(gates, READ_K, o, d), k1, k2, d)
        tl.store(change + o, tl.load(change + o) + (read + (tl.sum(shared, 1) - tl.sum(shared, 0))))
        dk1, dk2 = add_product(dk1, dk2, operand(weighted, d), k1, k2, d)
        forget()
    else:
        dk1, dk2 = key_zeros(d)
    states, d_states = state(states, row, d), state(d_states, row, d)
    db1, db2, kept = write_products(y, states, d_states, o, here, d, BV, STAGES)
    forget()
    k1, k2 = load_keys(token(k, start, key_head, T), k.t, o, here, d)
    db1, db2, stored = scale_rows(db1, db2, decay_to_end(gates, o, d), k1, k2, d)
    forget()
    if CORRECT:
        db1, db2 = add_square(db1, db2, pairs, keys, k.t, left, d, False)
        forget()
    db1, db2 = add_square(db1, db2, pairs, token(q, start, key_head, T), q.t, left, d, True)
    forget()
    k1, k2 = load_keys(token(k, start, key_head, T), k.t, o, here, d)
    norm = gate(gates, NORM_K, o, d)
    db1, db2, dbeta_rows = scale_rows(db1, db2, norm, k1, k2, d)
    tl.store(dbeta + out + o * d.HV, dbeta_rows, mask=here)
    beta = gate(gates, BETA, o, d)
    dk1 += db1 * beta[:, None]
    if d.K2:
        dk2 += db2 * beta[:, None]
    store_keys(dk + out * d.K, dk1, dk2, k1, k2, norm, o, here, d, L2NORM)

    # A token's gate scales what was there before it, where a token from it on reads it or the chunk's end keeps it.
    # <S, dS'> is part of every token's: it counts as read by the chunk's last row.
    carried = tl.where(o == d.BT - 1, kept * chunk_decay(gates, d), 0.0)
    total = tl.cumsum(tl.load(change + o) + carried, 0, reverse=True)
    stored = stored * write_factor(gates, o, d)
    total += tl.sum(tl.where(o[:, None] < o[None, :], stored[:, None], 0.0), 0)
    tl.store(dg + out + o * d.HV, total, mask=here)
