"""Parts of the gradients' kernels: products, sums over tokens, decays.

E, F and the layout of ``pairs``: gradients.py.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    BETA,
    CUM,
    CUM_REST,
    NORM_K,
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
def write_products(y, states, d_states, o, here, d, BV: tl.constexpr, STAGES: tl.constexpr):
    """Y dS'^T [BT, K] and <S, dS'>."""
    db1, db2 = key_zeros(d)
    inner = tl.zeros([BV], tl.float32)
    for first in tl.range(0, d.V, BV, num_stages=STAGES):
        o_v = first + tl.arange(0, BV)
        y_rows = load_rows(y, d.HV * d.V, o, o_v, here, d.V, d.V % BV == 0)
        s1, s2 = load_keys(states, d.K, o_v, o_v < d.V, d)
        ds1, ds2 = load_keys(d_states, d.K, o_v, o_v < d.V, d)
        both = tl.sum(s1.to(tl.float32) * ds1.to(tl.float32), 1)
        if d.K2:
            both += tl.sum(s2.to(tl.float32) * ds2.to(tl.float32), 1)
        inner += both
        db1, db2 = add_product(db1, db2, y_rows, ds1, ds2, d)
    return db1, db2, tl.sum(inner, 0)


@triton.jit
def add_product(x1, x2, a, b1, b2, d):
    """x + a b, both column tiles."""
    x1 = dot_onto(x1, a, b1)
    if d.K2:
        x2 = dot_onto(x2, a, b2)
    return x1, x2


@triton.jit
def add_square(x1, x2, pairs, rows, rows_t, left, d, E: tl.constexpr):
    """x + E^T (or F^T) times ``rows``, from memory."""
    o = tl.arange(0, d.BT)
    b1, b2 = load_keys(rows, rows_t, o, o < left, d)
    return add_product(x1, x2, transposed(pairs, d, E), b1, b2, d)


@triton.jit
def transposed(pairs, d, E: tl.constexpr):
    """E^T or F^T: E lies as it is, F transposed above its diagonal."""
    o = tl.arange(0, d.BT)
    i, j = o[:, None], o[None, :]
    if E:
        x = tl.load(pairs + j * d.BT + i, mask=i <= j, other=0.0)
    else:
        x = tl.load(pairs + i * d.BT + j, mask=i < j, other=0.0)
    return x


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
    store_rows(out, d.HV * d.K, o, tl.arange(0, d.K1), here, dx1, d.K, True)
    if d.K2:
        store_rows(out, d.HV * d.K, o, tl.arange(0, d.K2) + d.K1, here, dx2, d.K, d.K1 + d.K2 == d.K)
