"""The gates' Triton kernels, tiles of rows and heads. Backward computes both gates again.

dA_log and ddt_bias are summed over the rows of each program and then over the programs, in a fixed order.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import exp, load_tile, store_tile


@triton.jit
def _log1p(e):
    """Of e in [0, 1], to float32's precision relative to the result: 2 atanh(e / (2 + e)) as its odd series, whose
    ninth term is below 2e-9 of the sum. log(1 + e) would lose all digits of a small e; libdevice is not interpreted."""
    s = tl.div_rn(e, 2.0 + e)
    z = s * s
    p = z * (1 / 15) + 1 / 13
    p = z * p + 1 / 11
    p = z * p + 1 / 9
    p = z * p + 1 / 7
    p = z * p + 1 / 5
    p = z * p + 1 / 3
    return 2.0 * s + (2.0 * s) * (z * p)


@triton.jit
def _shrink(x):
    """exp(-|x|); exp's limit is far past where a float32 is 0."""
    return exp(-tl.minimum(tl.abs(x), 120.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _softplus(x, e):
    """log(1 + exp(x)) for e = exp(-|x|)."""
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + _log1p(e)


@triton.jit
def _sigmoid(x, e):
    """1 / (1 + exp(-x)) for e = exp(-|x|)."""
    return tl.div_rn(tl.where(x >= 0, 1.0, e), 1.0 + e)


@triton.jit
def decay(x, rate):
    """g of x = a + dt_bias and rate = -exp(A_log)."""
    return rate * _softplus(x, _shrink(x))


@triton.jit
def strength(x, ALLOW_NEG_EIGVAL: tl.constexpr):
    """beta of x = b."""
    most: tl.constexpr = 2.0 if ALLOW_NEG_EIGVAL else 1.0
    return most * _sigmoid(x, _shrink(x))


@triton.jit
def _place(D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """This program's first tile: its first row (int64), rows from there, and columns."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    first = (tl.program_id(0) // blocks).to(tl.int64) * BR
    o_d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    return first, tl.arange(0, BR), o_d


@triton.jit
def _heads(A_log, dt_bias, o_d, D: tl.constexpr):
    """-exp(A_log) and dt_bias, [1, columns]."""
    rate = -exp(tl.load(A_log + o_d, mask=o_d < D, other=0.0).to(tl.float32))
    return rate[None, :], tl.load(dt_bias + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    a, a_row, b, b_row, A_log, dt_bias, g, beta, N,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, ALLOW_NEG_EIGVAL: tl.constexpr,
):  # fmt: skip
    first, o_n, o_d = _place(D, BR, BD)
    mask = (first + o_n < N)[:, None] & (o_d < D)[None, :]
    rate, bias = _heads(A_log, dt_bias, o_d, D)
    x = load_tile(a, a_row, first, o_n, o_d, mask) + bias
    store_tile(g, D, first, o_n, o_d, mask, decay(x, rate))
    x = load_tile(b, b_row, first, o_n, o_d, mask)
    store_tile(beta, D, first, o_n, o_d, mask, strength(x, ALLOW_NEG_EIGVAL))


@triton.jit(do_not_specialize=["N", "steps", "stride"])
def backward_kernel(
    dg, dg_row, dbeta, dbeta_row, a, a_row, b, b_row, A_log, dt_bias, da, db, d_log, d_bias, N, steps, stride,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr, ALLOW_NEG_EIGVAL: tl.constexpr,
):  # fmt: skip
    """d_log and d_bias are float32 [programs, D]; each program takes every so many tiles of its columns, ``steps`` of
    them, which are ``stride`` rows apart."""
    most: tl.constexpr = 2.0 if ALLOW_NEG_EIGVAL else 1.0
    first, o_n, o_d = _place(D, BR, BD)
    row = first // BR * D
    rate, bias = _heads(A_log, dt_bias, o_d, D)
    log_total = tl.zeros([BR, BD], tl.float32)
    bias_total = tl.zeros([BR, BD], tl.float32)
    for _ in range(steps):
        mask = (first + o_n < N)[:, None] & (o_d < D)[None, :]
        x = load_tile(a, a_row, first, o_n, o_d, mask) + bias
        e = _shrink(x)
        change = load_tile(dg, dg_row, first, o_n, o_d, mask) * rate
        log_total += change * _softplus(x, e)
        change *= _sigmoid(x, e)
        bias_total += change
        store_tile(da, D, first, o_n, o_d, mask, change)
        e = _shrink(load_tile(b, b_row, first, o_n, o_d, mask))
        change = load_tile(dbeta, dbeta_row, first, o_n, o_d, mask) * most
        # sigmoid' is even, and written so nothing cancels
        store_tile(db, D, first, o_n, o_d, mask, change * tl.div_rn(e, (1.0 + e) * (1.0 + e)))
        first += stride
    tl.store(d_log + row + o_d, tl.sum(log_total, 0), mask=o_d < D)
    tl.store(d_bias + row + o_d, tl.sum(bias_total, 0), mask=o_d < D)
