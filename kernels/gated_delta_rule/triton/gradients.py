"""The gradients of q, k, beta and g, chunk by chunk, from what the passes over the chunks left behind.

Rows are tokens, S is the state at the chunk's start, dS' the gradient of the one at its end (names as in chunked.py):

    E  = scale * lower(dO Y^T) * D              F  = -strict_lower(dV Y^T) * D
    dq^ = scale exp(c) dO S^T + E B             dk^ = -exp(c) dV S^T + F B        the part where k reads the state
    dB  = exp(c_last - c) Y dS'^T + E^T q^ + F^T k^                               the part where it is written

then dbeta = k^ . dB, dk^ += beta dB, the gradient of the norms, and dg from every product of a weight and its gradient
whose decay a token's gate is part of. The diagonal of E has no decay in it and is left out of dg: it would cancel in
exact arithmetic only.

E^T and F^T go through memory (over ``weights``, which nothing reads after this): the transpose of an accumulator as a
product's operand is miscompiled for Hopper by Triton 3.4 to 3.7.0.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.triton.tiles import (
    BETA,
    CUM,
    CUM_REST,
    NORM_K,
    NORM_Q,
    READ_K,
    READ_Q,
    ROWS,
    chunk_decay,
    dot_keys,
    dot_onto,
    load_keys,
    load_rows,
    operand,
    pair_decay,
    store_rows,
    token,
)


@triton.jit(do_not_specialize=["T"])
def gradients_kernel(
    q,
    k,
    do,
    gates,
    weights,
    y,
    states,
    dv,
    d_states,
    dq,
    dk,
    dg,
    dbeta,
    chunks,
    scale,
    T,
    d,
    BV: tl.constexpr,
    L2NORM: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program per chunk and value head; dq and dk [B, T, HV, K] are that head's share."""
    chunk = tl.program_id(0) // d.HV
    head = tl.program_id(0) % d.HV
    segment = tl.load(chunks.segment_of + chunk)
    if segment < 0:
        return
    offset = (chunk - tl.load(chunks.first_chunk + segment)) * d.BT
    start = (tl.load(chunks.cu_seqlens + segment) + offset).to(tl.int64)
    o = tl.arange(0, d.BT)
    here = start + o < tl.load(chunks.cu_seqlens + segment + 1)
    key_head = head // (d.HV // d.H)
    row = chunk.to(tl.int64) * d.HV + head
    gates += row * (ROWS * d.BT)
    weights += row * (d.BT * d.BT)
    out = start * d.HV + head
    states += row * (d.K * d.V)
    d_states += row * (d.K * d.V)

    q_pairs, k_pairs, dq1, dq2, dk1, dk2, db1, db2, carried = _over_values(
        token(do, start, head, T), do.t, y + out * d.V, dv + out * d.V, states, d_states, o, here, d, BV, STAGES
    )
    q1, q2 = load_keys(token(q, start, key_head, T), q.t, o, here, d)
    k1, k2 = load_keys(token(k, start, key_head, T), k.t, o, here, d)
    norm_q = tl.load(gates + NORM_Q * d.BT + o)
    norm_k = tl.load(gates + NORM_K * d.BT + o)
    beta = tl.load(gates + BETA * d.BT + o)

    # dq and dk are of the raw rows, but for the norms' own gradient: READ_Q and READ_K hold the norm. So is db, by k's
    # norm; without its beta, which dbeta must not be divided by.
    dq1, dq2, read_q = _scale_rows(dq1, dq2, tl.load(gates + READ_Q * d.BT + o), q1, q2, d)
    dk1, dk2, read_k = _scale_rows(dk1, dk2, -tl.load(gates + READ_K * d.BT + o), k1, k2, d)
    db1, db2, stored = _scale_rows(db1, db2, _decay_to_end(gates, o, d), k1, k2, d)
    write = norm_k * beta
    decay = pair_decay(gates, o, o, d)
    strictly = o[:, None] > o[None, :]
    e = q_pairs * decay * (scale * norm_q)[:, None]
    f = tl.where(strictly, -k_pairs * decay, 0.0) * norm_k[:, None]
    pairs = tl.where(strictly, e * dot_keys(q1, q2, k1, k2, d), 0.0)
    pairs = (pairs + f * dot_keys(k1, k2, k1, k2, d)) * write[None, :]
    # A token's gate scales what was there before it, where a token from it on reads it or the chunk's end keeps it.
    change = tl.cumsum(read_q + read_k + tl.sum(pairs, 1) - tl.sum(pairs, 0), 0, reverse=True)
    change += tl.sum(tl.where(o[:, None] < o[None, :], (stored * write)[:, None], 0.0), 0)
    change += carried * chunk_decay(gates, d)
    tl.store(dg + out + o * d.HV, change, mask=here)

    dq1, dq2 = _add_product(dq1, dq2, operand(e * write[None, :], d), k1, k2, d)
    _store_keys(dq + out * d.K, dq1, dq2, q1, q2, norm_q, o, here, d, L2NORM)
    dk1, dk2 = _add_product(dk1, dk2, operand(f * write[None, :], d), k1, k2, d)
    db1, db2 = _add_product(db1, db2, _transposed(operand(e, d), weights, o, d), q1, q2, d)
    db1, db2 = _add_product(db1, db2, _transposed(operand(f, d), weights, o, d), k1, k2, d)
    db1, db2, beta_gradient = _scale_rows(db1, db2, norm_k, k1, k2, d)
    tl.store(dbeta + out + o * d.HV, beta_gradient, mask=here)
    dk1 += db1 * beta[:, None]
    if d.K2:
        dk2 += db2 * beta[:, None]
    _store_keys(dk + out * d.K, dk1, dk2, k1, k2, norm_k, o, here, d, L2NORM)


@triton.jit
def _over_values(do, do_t, y, dv, states, d_states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """The products that contract V: dO Y^T, dV Y^T [BT, BT]; dO S^T, dV S^T, Y dS'^T [BT, K]; and <S, dS'>."""
    q_pairs = tl.zeros([d.BT, d.BT], tl.float32)
    k_pairs = tl.zeros([d.BT, d.BT], tl.float32)
    dq1 = tl.zeros([d.BT, d.K1], tl.float32)
    dk1 = tl.zeros([d.BT, d.K1], tl.float32)
    db1 = tl.zeros([d.BT, d.K1], tl.float32)
    dq2, dk2, db2 = dq1, dk1, db1
    if d.K2:
        dq2 = tl.zeros([d.BT, d.K2], tl.float32)
        dk2 = tl.zeros([d.BT, d.K2], tl.float32)
        db2 = tl.zeros([d.BT, d.K2], tl.float32)
    products = tl.zeros([BV], tl.float32)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        m_v = o_v < d.V
        do_rows = load_rows(do, do_t, o, o_v, here, d.V, d.V % BV == 0)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        dv_rows = load_rows(dv, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(states, d.K, o_v, m_v, d)
        ds1, ds2 = load_keys(d_states, d.K, o_v, m_v, d)
        products += tl.sum(s1.to(tl.float32) * ds1.to(tl.float32), 1)
        if d.K2:
            products += tl.sum(s2.to(tl.float32) * ds2.to(tl.float32), 1)
        q_pairs = dot_onto(q_pairs, do_rows, tl.trans(y_rows))
        k_pairs = dot_onto(k_pairs, dv_rows, tl.trans(y_rows))
        dq1, dq2 = _add_product(dq1, dq2, do_rows, s1, s2, d)
        dk1, dk2 = _add_product(dk1, dk2, dv_rows, s1, s2, d)
        db1, db2 = _add_product(db1, db2, y_rows, ds1, ds2, d)
    return q_pairs, k_pairs, dq1, dq2, dk1, dk2, db1, db2, tl.sum(products, 0)


@triton.jit
def _add_product(x1, x2, a, b1, b2, d):
    """x + a b, both column tiles."""
    x1 = dot_onto(x1, a, b1)
    if d.K2:
        x2 = dot_onto(x2, a, b2)
    return x1, x2


@triton.jit
def _scale_rows(x1, x2, factor, y1, y2, d):
    """x * factor, both column tiles, and its product with y summed over each row."""
    x1 *= factor[:, None]
    total = tl.sum(x1 * y1, 1)
    if d.K2:
        x2 *= factor[:, None]
        total += tl.sum(x2 * y2, 1)
    return x1, x2, total


@triton.jit
def _decay_to_end(gates, o, d):
    past, rest = gates + CUM * d.BT, gates + CUM_REST * d.BT
    return tl.exp2(tl.load(past + d.BT - 1) - tl.load(past + o)) * tl.exp2(tl.load(rest + d.BT - 1) - tl.load(rest + o))


@triton.jit
def _transposed(x, scratch, o, d):
    tl.debug_barrier()  # nobody reads what was there before
    tl.store(scratch + o[:, None] * d.BT + o[None, :], x)
    tl.debug_barrier()
    return tl.load(scratch + o[None, :] * d.BT + o[:, None])


@triton.jit
def _store_keys(out, dx1, dx2, x1, x2, norm, o, here, d, L2NORM: tl.constexpr):
    """x / |x| has the gradient (dx - x^ (x^ . dx)) / |x|; dx comes divided by |x|."""
    if L2NORM:
        along = tl.sum(dx1 * x1, 1)
        if d.K2:
            along += tl.sum(dx2 * x2, 1)
        along *= norm * norm
        dx1 -= along[:, None] * x1
        if d.K2:
            dx2 -= along[:, None] * x2
    store_rows(out, d.HV * d.K, o, tl.arange(0, d.K1), here, dx1, d.K, True)
    if d.K2:
        store_rows(out, d.HV * d.K, o, tl.arange(0, d.K2) + d.K1, here, dx2, d.K, d.K1 + d.K2 == d.K)
