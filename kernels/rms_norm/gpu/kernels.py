"""The RMS norm's Triton kernels, a tile of rows at a time.

Backward computes the statistics again.

dweight is summed over the rows of each program and then over the programs, in a fixed order.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import load_tile, normalise, store_tile


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    x, x_row, before, before_row, after, after_row, weight, total, y, eps, N,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """total = x + before, y = norm(total) + after; without ``before`` x itself is normed and total is not written."""
    first = tl.program_id(0).to(tl.int64) * BR
    o_n = tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    m_n = first + o_n < N
    mask = m_n[:, None] & (o_d < D)[None, :]
    value = load_tile(x, x_row, first, o_n, o_d, mask)
    if before is not None:
        value += load_tile(before, before_row, first, o_n, o_d, mask)
        # what is normed is what is kept, or backward would norm another number
        value = value.to(total.dtype.element_ty).to(tl.float32)
        store_tile(total, D, first, o_n, o_d, mask, value)
    normed, _ = normalise(value, m_n, eps, D)
    out = normed * tl.load(weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
    if after is not None:
        out += load_tile(after, after_row, first, o_n, o_d, mask)
    store_tile(y, D, first, o_n, o_d, mask, out)


@triton.jit(do_not_specialize=["N", "steps"])
def backward_kernel(
    dy, dy_row, d_total, d_total_row, x, x_row, weight, dx, dweight, eps, N, steps,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx from the gradient of the norm of x and, if there is one, of x itself. dweight is float32 [programs, D]; each
    program takes every so many tiles, ``steps`` of them."""
    first = tl.program_id(0).to(tl.int64) * BR
    o_n = tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    scale = tl.load(weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BR, BD], tl.float32)
    for _ in range(steps):
        m_n = first + o_n < N
        mask = m_n[:, None] & (o_d < D)[None, :]
        normed, rstd = normalise(load_tile(x, x_row, first, o_n, o_d, mask), m_n, eps, D)
        change = load_tile(dy, dy_row, first, o_n, o_d, mask)
        total += change * normed
        change *= scale
        mean = tl.sum(change * normed, 1)[:, None] / D
        change = (change - normed * mean) * rstd
        if d_total is not None:
            change += load_tile(d_total, d_total_row, first, o_n, o_d, mask)
        store_tile(dx, D, first, o_n, o_d, mask, change)
        first += tl.num_programs(0) * BR
    tl.store(dweight + tl.program_id(0) * D + o_d, tl.sum(total, 0), mask=o_d < D)
