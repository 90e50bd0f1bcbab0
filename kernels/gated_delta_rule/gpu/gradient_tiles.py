"""Parts of the gradients' kernels: products, sums over tokens, decays.

E, F and the layout of ``weights``: gradients.py.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    BETA,
    CUM,
    CUM_REST,
    NORM_K,
    STEP,
    dot_onto,
    gate,
    load_keys,
    load_rows,
    store_rows,
)


@triton.jit
def key_zeros(d):
    x1 = tl.zeros([d.BT, d.K1], tl.float32)
    x2 = x1
    if d.K2:
        x2 = tl.zeros([d.BT, d.K2], tl.float32)
    return x1, x2


@triton.jit
def write_factor(gates, o, d):
    return gate(gates, NORM_K, o, d) * gate(gates, BETA, o, d)


@triton.jit
def read_products(y, dv, states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """dV Y^T [BT, BT] and dV S^T [BT, K]."""
    pairs = tl.zeros([d.BT, d.BT], tl.float32)
    dk1, dk2 = key_zeros(d)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        dv_rows = load_rows(dv, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(states, d.K, o_v, o_v < d.V, d)
        pairs = dot_onto(pairs, dv_rows, tl.trans(y_rows))
        dk1, dk2 = add_product(dk1, dk2, dv_rows, s1, s2, d)
    return pairs, dk1, dk2


@triton.jit
def write_products(y, d_states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """Y dS'^T [BT, K]."""
    db1, db2 = key_zeros(d)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        ds1, ds2 = load_keys(d_states, d.K, o_v, o_v < d.V, d)
        db1, db2 = add_product(db1, db2, y_rows, ds1, ds2, d)
    return db1, db2


@triton.jit
def kept_by_end(y, d_states, keys, k_t, o, here, d):
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
def change_of(read, pairs, later, d):
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
def add_product(x1, x2, a, b1, b2, d):
    """x + a b, both column tiles."""
    x1 = dot_onto(x1, a, b1)
    if d.K2:
        x2 = dot_onto(x2, a, b2)
    return x1, x2


@triton.jit
def add_square(x1, x2, weights, gates, rows, rows_t, left, d, E: tl.constexpr, FLIPPED: tl.constexpr):
    """x + E (or F) times ``rows`` and what their tokens write; FLIPPED: x + E^T (F^T) times ``rows``. From memory; in
    float32 a few rows at a time, whose operands take twice their size of registers in three-pass tf32."""
    o = tl.arange(0, d.BT)
    if d.DOT == tl.float32:
        for first in tl.range(0, d.BT, STEP, num_stages=1):
            o_j = first + tl.arange(0, STEP)
            a = square_of(weights, o, o_j, d, E, FLIPPED)
            if not FLIPPED:
                a *= write_factor(gates, o_j, d)[None, :]
            b1, b2 = load_keys(rows, rows_t, o_j, o_j < left, d)
            x1, x2 = add_product(x1, x2, a, b1, b2, d)
    else:
        b1, b2 = load_keys(rows, rows_t, o, o < left, d)
        x1, x2 = add_product(x1, x2, square_of(weights, o, o, d, E, FLIPPED), b1, b2, d)
    return x1, x2


@triton.jit
def square_of(weights, o_i, o_j, d, E: tl.constexpr, FLIPPED: tl.constexpr):
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
def scale_rows(x1, x2, factor, y1, y2, d):
    """x * factor, both column tiles, and its product with y summed over each row."""
    x1 *= factor[:, None]
    total = tl.sum(x1 * y1, 1)
    if d.K2:
        x2 *= factor[:, None]
        total += tl.sum(x2 * y2, 1)
    return x1, x2, total


@triton.jit
def decay_to_end(gates, o, d):
    past = tl.exp2(gate(gates, CUM, d.BT - 1, d) - gate(gates, CUM, o, d))
    return past * tl.exp2(gate(gates, CUM_REST, d.BT - 1, d) - gate(gates, CUM_REST, o, d))


@triton.jit
def store_keys(out, dx1, dx2, x1, x2, norm, o, here, d, L2NORM: tl.constexpr):
    """x / |x| has the gradient (dx - x^ (x^ . dx)) / |x|; dx comes divided by |x|."""
    if L2NORM:
        along = tl.sum(dx1 * x1, 1)
        if d.K2:
            along += tl.sum(dx2 * x2, 1)
        along *= norm * norm
        dx1 -= along[:, None] * x1
        if d.K2:
            dx2 -= along[:, None] * x2
    store_both(out, dx1, dx2, o, here, d)


@triton.jit
def store_both(out, dx1, dx2, o, here, d):
    store_rows(out, d.HV * d.K, o, tl.arange(0, d.K1), here, dx1, d.K, True)
    if d.K2:
        store_rows(out, d.HV * d.K, o, tl.arange(0, d.K2) + d.K1, here, dx2, d.K, d.K1 + d.K2 == d.K)
