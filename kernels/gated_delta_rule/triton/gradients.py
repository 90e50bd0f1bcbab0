"""The gradients of q, k, beta and g, chunk by chunk, from what the passes over the chunks left behind.

Rows are tokens, S is the state at the chunk's start, dS' the gradient of the one at its end (names as in chunked.py):

    E  = scale * lower(dO Y^T) * D              F  = -strict_lower(dV Y^T) * D
    dq^ = scale exp(c) dO S^T + E B             dk^ = -exp(c) dV S^T + F B        the part where k reads the state
    dB  = exp(c_last - c) Y dS'^T + E^T q^ + F^T k^                               the part where it is written

then dbeta = k^ . dB, dk^ += beta dB, the gradient of the norms, and dg from every product of a weight and its gradient
whose decay a token's gate is part of. The diagonal of E has no decay in it and is left out of dg: it would cancel in
exact arithmetic only.

Two kernels, q's and then k's, and in k's two loops over V: the accumulators of all do not fit into the registers. E and
F go to k's products through memory (over ``weights``, which nothing reads after this; F^T above the diagonal, where E
is 0): the transpose of an accumulator as a product's operand is miscompiled for Hopper by Triton 3.4 to 3.7.0. Where
keys are loaded again behind a barrier, the compiler would otherwise hold them in registers that it does not have.

Factors: dq and dk are of the raw rows, but for the norms' own gradient, and dB is kept times k's norm, without the beta
that dbeta must not be divided by.
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
    STEP,
    chunk_decay,
    dot_keys,
    dot_onto,
    dot_rows,
    load_keys,
    load_keys_again,
    load_rows,
    operand,
    pair_decay,
    place,
    store_rows,
    token,
)


@triton.jit(do_not_specialize=["T"])
def query_kernel(
    q,
    k,
    do,
    gates,
    weights,
    y,
    states,
    d_states,
    dq,
    dbeta,
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
    [NT, HV, BT], see ``_change``, and E over ``weights``; in float32 E's part of dbeta too. <S, dS'> is part of every
    token's dg: it counts as read by the chunk's last row."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    o = tl.arange(0, d.BT)
    here = o < left
    key_head = head // (d.HV // d.H)
    gates += row * (ROWS * d.BT)
    out = start * d.HV + head
    pairs = tl.zeros([d.BT, d.BT], tl.float32)
    dq1, dq2 = _zeros(d)
    inner = tl.zeros([BV], tl.float32)
    outputs = token(do, start, head, T)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        do_rows = load_rows(outputs, do.t, o, o_v, here, d.V, d.V % BV == 0)
        y_rows = load_rows(y + out * d.V, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(states + row * (d.K * d.V), d.K, o_v, o_v < d.V, d)
        ds1, ds2 = load_keys(d_states + row * (d.K * d.V), d.K, o_v, o_v < d.V, d)
        inner += tl.sum(s1.to(tl.float32) * ds1.to(tl.float32), 1)
        if d.K2:
            inner += tl.sum(s2.to(tl.float32) * ds2.to(tl.float32), 1)
        pairs = dot_onto(pairs, do_rows, tl.trans(y_rows))
        dq1, dq2 = _add_product(dq1, dq2, do_rows, s1, s2, d)

    norm = tl.load(gates + NORM_Q * d.BT + o)
    e = pairs * pair_decay(gates, o, o, d) * (scale * norm)[:, None]
    weights += row * (d.BT * d.BT)
    tl.store(weights + o[:, None] * d.BT + o[None, :], operand(e, d))
    weighted = e * _write_factor(gates, o, d)[None, :]
    tl.debug_barrier()
    queries, keys = token(q, start, key_head, T), token(k, start, key_head, T)
    q1, q2 = load_keys(queries, q.t, o, here, d)
    k1, k2 = load_keys(keys, k.t, o, here, d)
    later = o[:, None] > o[None, :]
    if d.DOT == tl.float32:
        products = dot_rows(queries, q.t, o, keys, k.t, o, left, d)
        tl.store(dbeta + out + o * d.HV, tl.sum(e * products, 0), mask=here)
        tl.debug_barrier()
        q1, q2 = load_keys(queries, q.t, o, here, d)
    else:
        products = dot_keys(q1, q2, k1, k2, d)
    shared = tl.where(later, weighted * products, 0.0)
    dq1, dq2, read = _scale_rows(dq1, dq2, tl.load(gates + READ_Q * d.BT + o), q1, q2, d)
    carried = tl.sum(inner, 0) * chunk_decay(gates, d)
    shares = o == d.BT - 1
    if d.DOT == tl.float32:  # where ``change`` is summed over later tokens already
        shares = o >= 0
    tl.store(change + row * d.BT + o, _change(read, shared, later, d) + tl.where(shares, carried, 0.0))
    tl.debug_barrier()
    if d.DOT == tl.float32:
        dq1, dq2 = _add_square(dq1, dq2, weights, gates, keys, k.t, left, d, True, False)
    else:
        k1, k2 = load_keys(keys, k.t, o, here, d)
        dq1, dq2 = _add_product(dq1, dq2, operand(weighted, d), k1, k2, d)
    tl.debug_barrier()
    q1, q2 = load_keys(queries, q.t, o, here, d)
    _store_keys(dq + out * d.K, dq1, dq2, q1, q2, norm, o, here, d, L2NORM)


@triton.jit(do_not_specialize=["T"])
def key_kernel(
    q,
    k,
    gates,
    weights,
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
):
    """One program per chunk and value head, after ``query_kernel``, whose ``change`` it completes; dk [B, T, HV, K] is
    that head's share."""
    segment, start, row, head, left = place(chunks, d)
    if segment < 0:
        return
    o = tl.arange(0, d.BT)
    here = o < left
    key_head = head // (d.HV // d.H)
    gates += row * (ROWS * d.BT)
    weights += row * (d.BT * d.BT)
    out = start * d.HV + head
    change += row * d.BT
    y += out * d.V
    pairs, dk1, dk2 = _read_products(y, dv + out * d.V, states + row * (d.K * d.V), o, here, d, BV, STAGES)
    later = o[:, None] > o[None, :]
    f = tl.where(later, -pairs * pair_decay(gates, o, o, d), 0.0) * tl.load(gates + NORM_K * d.BT + o)[:, None]
    tl.store(weights + o[None, :] * d.BT + o[:, None], operand(f, d), mask=later)
    weighted = f * _write_factor(gates, o, d)[None, :]
    tl.debug_barrier()
    keys = token(k, start, key_head, T)
    k1, k2 = load_keys(keys, k.t, o, here, d)
    if d.DOT == tl.float32:
        products = dot_rows(keys, k.t, o, keys, k.t, o, left, d)
        read_later = tl.load(dbeta + out + o * d.HV, mask=here, other=0.0) + tl.sum(f * products, 0)
        tl.store(dbeta + out + o * d.HV, read_later, mask=here)
        tl.debug_barrier()
        k1, k2 = load_keys(keys, k.t, o, here, d)
    else:
        products = dot_keys(k1, k2, k1, k2, d)
    shared = weighted * products
    dk1, dk2, read = _scale_rows(dk1, dk2, -tl.load(gates + READ_K * d.BT + o), k1, k2, d)
    tl.store(change + o, tl.load(change + o) + _change(read, shared, later, d))
    tl.debug_barrier()
    if d.DOT == tl.float32:
        dk1, dk2 = _add_square(dk1, dk2, weights, gates, keys, k.t, left, d, False, False)
        _store_both(dk + out * d.K, dk1, dk2, o, here, d)
    else:
        k1, k2 = load_keys(keys, k.t, o, here, d)
        dk1, dk2 = _add_product(dk1, dk2, operand(weighted, d), k1, k2, d)
    tl.debug_barrier()
    d_states += row * (d.K * d.V)
    if d.DOT == tl.float32:
        kept = _kept(y, d_states, keys, k.t, o, here, d)
        tl.debug_barrier()
    db1, db2 = _write_products(y, d_states, o, here, d, BV, STAGES)
    tl.debug_barrier()
    k1, k2 = load_keys(token(k, start, key_head, T), k.t, o, here, d)
    db1, db2, stored = _scale_rows(db1, db2, _decay_to_end(gates, o, d), k1, k2, d)
    tl.debug_barrier()
    db1, db2 = _add_square(db1, db2, weights, gates, keys, k.t, left, d, False, True)
    tl.debug_barrier()
    db1, db2 = _add_square(db1, db2, weights, gates, token(q, start, key_head, T), q.t, left, d, True, True)
    tl.debug_barrier()
    k1, k2 = load_keys(token(k, start, key_head, T), k.t, o, here, d)
    norm = tl.load(gates + NORM_K * d.BT + o)
    db1, db2, dbeta_rows = _scale_rows(db1, db2, norm, k1, k2, d)
    if d.DOT == tl.float32:
        kept *= _decay_to_end(gates, o, d)
        dbeta_rows = (kept + tl.load(dbeta + out + o * d.HV, mask=here, other=0.0)) * norm
    tl.store(dbeta + out + o * d.HV, dbeta_rows, mask=here)
    beta = tl.load(gates + BETA * d.BT + o)
    dk1, dk2 = load_keys_again(dk1, dk2, dk + out * d.K, d.HV * d.K, o, here, d)
    dk1 += db1 * beta[:, None]
    if d.K2:
        dk2 += db2 * beta[:, None]
    _store_keys(dk + out * d.K, dk1, dk2, k1, k2, norm, o, here, d, L2NORM)

    # A token's gate scales what was there before it, where a token from it on reads it or the chunk's end keeps it.
    total = tl.load(change + o)
    if d.DOT == tl.float32:
        kept *= _write_factor(gates, o, d)
        total += tl.cumsum(kept, 0) - kept
    else:
        total = tl.cumsum(total, 0, reverse=True)
        stored = stored * _write_factor(gates, o, d)
        total += tl.sum(tl.where(o[:, None] < o[None, :], stored[:, None], 0.0), 0)
    tl.store(dg + out + o * d.HV, total, mask=here)


@triton.jit
def _zeros(d):
    x1 = tl.zeros([d.BT, d.K1], tl.float32)
    x2 = x1
    if d.K2:
        x2 = tl.zeros([d.BT, d.K2], tl.float32)
    return x1, x2


@triton.jit
def _write_factor(gates, o, d):
    return tl.load(gates + NORM_K * d.BT + o) * tl.load(gates + BETA * d.BT + o)


@triton.jit
def _read_products(y, dv, states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """dV Y^T [BT, BT] and dV S^T [BT, K]."""
    pairs = tl.zeros([d.BT, d.BT], tl.float32)
    dk1, dk2 = _zeros(d)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        dv_rows = load_rows(dv, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(states, d.K, o_v, o_v < d.V, d)
        pairs = dot_onto(pairs, dv_rows, tl.trans(y_rows))
        dk1, dk2 = _add_product(dk1, dk2, dv_rows, s1, s2, d)
    return pairs, dk1, dk2


@triton.jit
def _write_products(y, d_states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """Y dS'^T [BT, K]."""
    db1, db2 = _zeros(d)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        ds1, ds2 = load_keys(d_states, d.K, o_v, o_v < d.V, d)
        db1, db2 = _add_product(db1, db2, y_rows, ds1, ds2, d)
    return db1, db2


@triton.jit
def _kept(y, d_states, keys, k_t, o, here, d):
    """k . Y dS'^T [BT] in float64, for float32. Where the chunk's end alone reads a token, its dbeta is this one sum of K V
    terms, which cancels up to several hundred times."""
    kept = tl.zeros([d.BT], tl.float64)
    k1, k2 = load_keys(keys, k_t, o, here, d)
    for v in tl.range(0, d.V, num_stages=1):
        x = tl.sum(k1.to(tl.float64) * tl.load(d_states + v * d.K + tl.arange(0, d.K1))[None, :], 1)
        if d.K2:
            o_k = tl.arange(0, d.K2) + d.K1
            x += tl.sum(k2.to(tl.float64) * tl.load(d_states + v * d.K + o_k, mask=o_k < d.K, other=0.0)[None, :], 1)
        kept += x * tl.load(y + o * (d.HV * d.V) + v, mask=here, other=0.0)
    return kept


@triton.jit
def _change(read, pairs, later, d):
    """What tokens read of the chunk's start, ``read`` [BT], and of its earlier tokens, ``pairs`` [BT, BT], as dg needs it:
    summed over the tokens from t on, and of what was written before t alone.

    In 16 bits that sum is taken in the end, of what each token reads less what it wrote that later tokens read; float32's
    rounding of the pairs that cancel there doubles dg's error, so in float32 it is the sum itself, over i >= t > j.
    """
    if d.DOT == tl.float32:
        change = tl.cumsum(read.to(tl.float64), 0, reverse=True)
        change += tl.sum(tl.where(later, tl.cumsum(pairs, 0, reverse=True), 0.0), 1)
    else:
        change = read + (tl.sum(pairs, 1) - tl.sum(pairs, 0))
    return change


@triton.jit
def _add_product(x1, x2, a, b1, b2, d):
    """x + a b, both column tiles."""
    x1 = dot_onto(x1, a, b1)
    if d.K2:
        x2 = dot_onto(x2, a, b2)
    return x1, x2


@triton.jit
def _add_square(x1, x2, weights, gates, rows, rows_t, left, d, E: tl.constexpr, FLIPPED: tl.constexpr):
    """x + E (or F) times ``rows`` and what their tokens write; FLIPPED: x + E^T (F^T) times ``rows``. From memory; in
    float32 a few rows at a time, whose operands take twice their size of registers in three-pass tf32."""
    o = tl.arange(0, d.BT)
    if d.DOT == tl.float32:
        for first in tl.range(0, d.BT, STEP, num_stages=1):
            o_j = first + tl.arange(0, STEP)
            a = _square(weights, o, o_j, d, E, FLIPPED)
            if not FLIPPED:
                a *= _write_factor(gates, o_j, d)[None, :]
            b1, b2 = load_keys(rows, rows_t, o_j, o_j < left, d)
            x1, x2 = _add_product(x1, x2, a, b1, b2, d)
    else:
        b1, b2 = load_keys(rows, rows_t, o, o < left, d)
        x1, x2 = _add_product(x1, x2, _square(weights, o, o, d, E, FLIPPED), b1, b2, d)
    return x1, x2


@triton.jit
def _square(weights, o_i, o_j, d, E: tl.constexpr, FLIPPED: tl.constexpr):
    """Rows and columns of E, F or a transpose: E lies as it is, F transposed above its diagonal."""
    i, j = o_i[:, None], o_j[None, :]
    if E == FLIPPED:
        at = weights + j * d.BT + i
    else:
        at = weights + i * d.BT + j
    if E:
        mask = i <= j if FLIPPED else i >= j
    else:
        mask = i < j if FLIPPED else i > j
    return tl.load(at, mask=mask, other=0.0)


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
    _store_both(out, dx1, dx2, o, here, d)


@triton.jit
def _store_both(out, dx1, dx2, o, here, d):
    store_rows(out, d.HV * d.K, o, tl.arange(0, d.K1), here, dx1, d.K, True)
    if d.K2:
        store_rows(out, d.HV * d.K, o, tl.arange(0, d.K2) + d.K1, here, dx2, d.K, d.K1 + d.K2 == d.K)
