"""Passes through a segment's chunks, a state tile [BV, K] in registers.

Forward, S at a chunk's start; all V-first, so transposed from cpu/chunked.py, where the equations are:

    Y  = (V - S k^T * READ_K) T^T          O  = S q^T * READ_Q + Y weights^T
    S' = S * decay + (Y * WRITE_K) k

Backward, from dS', the gradient of the state at the chunk's end:

    dV = (dO weights + dS' k^T * WRITE_K) T
    dS = dS' * decay + (dO * READ_Q) q - (dV * READ_K) k

Without an inverse nothing is corrected: Y = V and dV = dO weights + dS' k^T * WRITE_K, and dS lacks its last term.

The next chunk's v is loaded while this one is worked on: it is no product's operand, which alone the compiler loads a
stage ahead, and its wait would be part of every step.

The norms of q and k, scale, beta and the decays are in the factors per token (tiles.py), so that q and k themselves are
the products' operands, straight from memory.

Compiled for Hopper, bfloat16, heads of 96/192; bytes and products for 30 heads and 32,768 tokens, programs on one
multiprocessor (benchmarks/kernel_counts.py makes the counts):

    kernel            warps  registers  spilled  shared  programs  bytes    products
    forward               4        230      0 B  83 KiB         2  1.40 GB  157 GFLOP
    forward, alone        4        233      0 B 124 KiB         1  1.40 GB  157 GFLOP
    backward              4        254      0 B  97 KiB         2  3.61 GB  254 GFLOP

Forward waits for a step after another: by the model behind benchmarks/gpu_check/predictions.py two programs on a
multiprocessor take 3,620 cycles for a step of each (3,880 with v loaded in its own step). Where each is alone there
(one sequence of 30 heads), three stages leave 2,570, whatever the memory's latency, for 3,430 of two.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    READ_K,
    READ_Q,
    WRITE_K,
    chunk_decay,
    dot,
    dot_onto,
    gate,
    gates_of,
    load_columns,
    load_keys,
    load_square,
    operand,
    square,
    state,
    store_columns,
    store_rows,
    token,
)


@triton.jit(do_not_specialize=["T"])
def forward_kernel(q, k, v, within, initial_state, o, y, states, final_state, chunks, T, d, use, KEEP: tl.constexpr):
    """One program per segment, value head and V tile. Writes o and the final state; with KEEP every S and Y as well."""
    scan_forward(tl.program_id(0), q, k, v, within, initial_state, o, y, states, final_state, chunks, T, d, use, KEEP)


@triton.jit(do_not_specialize=["T", "lanes"])
def backward_kernel(
    q,
    k,
    v,
    do,
    within,
    initial_state,
    d_final,
    y,
    states,
    dv,
    d_states,
    d_initial,
    chunks,
    lanes,
    T,
    d,
    use,
    KEPT: tl.constexpr,
):
    """The first ``lanes`` programs scan backward. Without KEPT as many again compute S and Y once more beside them: the
    two do not need one another, and one long sequence alone would leave half a chip idle."""
    pid = tl.program_id(0)
    if KEPT:
        scan_backward(pid, q, k, do, within, d_final, dv, d_states, d_initial, chunks, T, d, use)
    else:
        if pid < lanes:
            scan_backward(pid, q, k, do, within, d_final, dv, d_states, d_initial, chunks, T, d, use)
        else:
            scan_forward(pid - lanes, q, k, v, within, initial_state, None, y, states, None, chunks, T, d, use, True)


@triton.jit
def scan_forward(pid, q, k, v, within, initial_state, o, y, states, final_state, chunks, T, d, use, KEEP: tl.constexpr):
    """What is None is not written. Without v the scan starts from the identity's rows."""
    segment, head, o_v = _lane(pid, chunks.order, d, use.BV)
    start, length, chunk = _segment(segment, chunks)
    key_head = head // (d.HV // d.H)
    if o is not None:
        queries = token(q, start, key_head, T)
    keys = token(k, start, key_head, T)
    outer = (segment.to(tl.int64) * d.HV + head) * (d.K * d.V)
    o_c = tl.arange(0, d.BT)
    if v is None:
        s1, s2 = _identity(o_v, d)
    else:
        values = token(v, start, head, T)
        s1, s2 = load_outer(initial_state, outer, o_v, d, use.BV)
        v_columns = load_columns(values, v.t, o_c, o_v, o_c < length, d.V, d.V % use.BV == 0)
    for i in tl.range(0, tl.cdiv(length, d.BT), num_stages=use.STAGES):
        row = (chunk + i) * d.HV + head
        at = (chunk - chunk) + i * d.BT
        here = o_c < length - i * d.BT
        gates = gates_of(within.gates, row, d)
        k1, k2 = load_keys(keys + at * k.t, k.t, o_c, here, d)
        if v is None:
            value = 0.0
        else:
            value = v_columns
            later = o_c < length - (i + 1) * d.BT
            at_next = values + (at + d.BT) * v.t
            v_columns = load_columns(at_next, v.t, o_c, o_v, later, d.V, d.V % use.BV == 0)
        a1, a2 = s1.to(d.DOT), s2.to(d.DOT)
        if KEEP:
            _store_inner(state(states, row, d), a1, a2, o_v, d, use.BV)
        if within.inverse is None:
            write = value
        else:
            error = value - _read(a1, a2, k1, k2, gate(gates, READ_K, o_c, d), d, use.APART)
            write = dot(operand(error, d), tl.trans(load_square(square(within.inverse, row, d), d)))
        out = ((start + at) * d.HV + head) * d.V
        if KEEP:
            store_columns(y + out, d.HV * d.V, o_c, o_v, here, operand(write, d), d.V, d.V % use.BV == 0)
        if o is not None:
            q1, q2 = load_keys(queries + at * q.t, q.t, o_c, here, d)
            read = _read(a1, a2, q1, q2, gate(gates, READ_Q, o_c, d), d, use.APART)
            read = dot_onto(read, operand(write, d), tl.trans(load_square(square(within.weights, row, d), d)))
            store_columns(o + out, d.HV * d.V, o_c, o_v, here, read, d.V, d.V % use.BV == 0)
        decay = chunk_decay(gates, d)
        if v is None and within.inverse is None:
            s1 *= decay
            if d.K2:
                s2 *= decay
        else:
            write = operand(write * gate(gates, WRITE_K, o_c, d)[None, :], d)
            s1 = dot_onto(s1 * decay, write, k1)
            if d.K2:
                s2 = dot_onto(s2 * decay, write, k2)
    if final_state is not None:
        store_outer(final_state, outer, s1, s2, o_v, d)


@triton.jit
def scan_backward(pid, q, k, do, within, d_final, dv, d_states, d_initial, chunks, T, d, use):
    """Writes dV and the gradient of the state at every chunk's end, unless they are None, and of the initial state."""
    segment, head, o_v = _lane(pid, chunks.order, d, use.BV)
    start, length, chunk = _segment(segment, chunks)
    key_head = head // (d.HV // d.H)
    queries = token(q, start, key_head, T)
    keys = token(k, start, key_head, T)
    outputs = token(do, start, head, T)
    outer = (segment.to(tl.int64) * d.HV + head) * (d.K * d.V)
    o_c = tl.arange(0, d.BT)
    s1, s2 = load_outer(d_final, outer, o_v, d, use.BV)
    count = tl.cdiv(length, d.BT)
    for back in tl.range(0, count, num_stages=use.STAGES):
        i = count - 1 - back
        row = (chunk + i) * d.HV + head
        at = (chunk - chunk) + i * d.BT
        here = o_c < length - i * d.BT
        gates = gates_of(within.gates, row, d)
        k1, k2 = load_keys(keys + at * k.t, k.t, o_c, here, d)
        q1, q2 = load_keys(queries + at * q.t, q.t, o_c, here, d)
        do_columns = load_columns(outputs + at * do.t, do.t, o_c, o_v, here, d.V, d.V % use.BV == 0)
        a1, a2 = s1.to(d.DOT), s2.to(d.DOT)
        if d_states is not None:
            _store_inner(state(d_states, row, d), a1, a2, o_v, d, use.BV)
        dy = _read(a1, a2, k1, k2, gate(gates, WRITE_K, o_c, d), d, use.APART)
        dy = dot_onto(dy, do_columns, load_square(square(within.weights, row, d), d))
        dvalue = dy
        if within.inverse is not None:
            dvalue = dot(operand(dy, d), load_square(square(within.inverse, row, d), d))
        if dv is not None:
            out = ((start + at) * d.HV + head) * d.V
            store_columns(dv + out, d.HV * d.V, o_c, o_v, here, dvalue, d.V, d.V % use.BV == 0)
        read = operand(do_columns * gate(gates, READ_Q, o_c, d)[None, :], d)
        if within.inverse is None:
            decay = chunk_decay(gates, d)
            s1 = dot_onto(s1 * decay, read, q1)
            if d.K2:
                s2 = dot_onto(s2 * decay, read, q2)
        else:
            corrected = operand(-dvalue * gate(gates, READ_K, o_c, d)[None, :], d)
            decay = chunk_decay(gates, d)
            s1 = _add_two(s1 * decay, read, q1, corrected, k1, use.APART)
            if d.K2:
                s2 = _add_two(s2 * decay, read, q2, corrected, k2, use.APART)
    store_outer(d_initial, outer, s1, s2, o_v, d)


@triton.jit
def _lane(pid, order, d, BV: tl.constexpr):
    """Segment, value head and V columns of a program. A head's tiles run side by side: q, k and T stay in the cache."""
    tiles = tl.cdiv(d.V, BV)
    segment = tl.load(order + pid // (d.HV * tiles))
    return segment, pid // tiles % d.HV, pid % tiles * BV + tl.arange(0, BV)


@triton.jit
def _segment(segment, chunks):
    """First token and first chunk in int64, length."""
    start = tl.load(chunks.cu_seqlens + segment)
    length = tl.load(chunks.cu_seqlens + segment + 1) - start
    return start.to(tl.int64), length, tl.load(chunks.first_chunk + segment).to(tl.int64)


@triton.jit
def _read(s1, s2, b1, b2, factor, d, APART: tl.constexpr):
    """(s b^T) * factor, [V, tokens].

    APART keeps an accumulator per key tile: two products into one accumulator in a loop are miscompiled for sm_100
    (triton#10821). Each is scaled before they are added, since Triton folds a plain sum of products back into one.
    """
    x = dot(s1, tl.trans(b1))
    if d.K2:
        if APART:
            x = x * factor[None, :] + dot(s2, tl.trans(b2)) * factor[None, :]
        else:
            x = dot_onto(x, s2, tl.trans(b2)) * factor[None, :]
    else:
        x = x * factor[None, :]
    return x


@triton.jit
def _add_two(s, a, x, b, y, APART: tl.constexpr):
    """s + a x + b y; with APART the second product has its own accumulator, which a difference is not folded into."""
    if APART:
        s = dot_onto(s - dot(-b, y), a, x)
    else:
        s = dot_onto(dot_onto(s, a, x), b, y)
    return s


@triton.jit
def _identity(o_v, d):
    """Rows ``o_v`` of it."""
    s1 = tl.where(o_v[:, None] == tl.arange(0, d.K1)[None, :], 1.0, 0.0)
    s2 = s1
    if d.K2:
        s2 = tl.where(o_v[:, None] == (tl.arange(0, d.K2) + d.K1)[None, :], 1.0, 0.0)
    return s1, s2


@triton.jit
def load_outer(x, state, o_v, d, BV: tl.constexpr):
    """Both tiles of a [K, V] state outside the kernels, V-first in float32; zeros where there is none."""
    s1 = tl.zeros([BV, d.K1], tl.float32)
    if x is not None:
        o_k = tl.arange(0, d.K1)
        at = x + state + o_k[None, :] * d.V + o_v[:, None]
        s1 = tl.load(at, mask=(o_v < d.V)[:, None], other=0.0).to(tl.float32)
    s2 = s1
    if d.K2:
        s2 = tl.zeros([BV, d.K2], tl.float32)
        if x is not None:
            o_k = tl.arange(0, d.K2) + d.K1
            at = x + state + o_k[None, :] * d.V + o_v[:, None]
            s2 = tl.load(at, mask=(o_k < d.K)[None, :] & (o_v < d.V)[:, None], other=0.0).to(tl.float32)
    return s1, s2


@triton.jit
def store_outer(x, state, s1, s2, o_v, d):
    o_k = tl.arange(0, d.K1)
    tl.store(x + state + o_k[None, :] * d.V + o_v[:, None], s1, mask=(o_v < d.V)[:, None])
    if d.K2:
        o_k = tl.arange(0, d.K2) + d.K1
        at = x + state + o_k[None, :] * d.V + o_v[:, None]
        tl.store(at, s2, mask=(o_k < d.K)[None, :] & (o_v < d.V)[:, None])


@triton.jit
def _store_inner(x, s1, s2, o_v, d, BV: tl.constexpr):
    """Both tiles of one chunk's state, as they are: [V, K]."""
    store_rows(x, d.K, o_v, tl.arange(0, d.K1), o_v < d.V, s1, d.K, True)
    if d.K2:
        store_rows(x, d.K, o_v, tl.arange(0, d.K2) + d.K1, o_v < d.V, s2, d.K, d.K1 + d.K2 == d.K)
