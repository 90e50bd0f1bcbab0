"""The gated RMS norm's Triton kernels, a tile of rows at a time.

Backward computes the statistics again.

dweight is summed over the rows of each program and then over the programs, in a fixed order.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import load_tile, normalise, sigmoid, store_tile


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    x, x_row, gate, gate_row, weight, y, eps, N, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * BR
    o_n = tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    m_n = first + o_n < N
    mask = m_n[:, None] & (o_d < D)[None, :]
    normed, _ = normalise(load_tile(x, x_row, first, o_n, o_d, mask), m_n, eps, D)
    scale = tl.load(weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
    z = load_tile(gate, gate_row, first, o_n, o_d, mask)
    store_tile(y, D, first, o_n, o_d, mask, normed * scale * (z * sigmoid(z)))


@triton.jit(do_not_specialize=["N", "steps"])
def backward_kernel(
    dy, dy_row, x, x_row, gate, gate_row, weight, dx, dgate, dweight, eps, N, steps,
    D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dweight is float32 [programs, D]; each program takes every so many tiles, ``steps`` of them."""
    first = tl.program_id(0).to(tl.int64) * BR
    o_n = tl.arange(0, BR)
    o_d = tl.arange(0, BD)
    scale = tl.load(weight + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BR, BD], tl.float32)
    for _ in range(steps):
        m_n = first + o_n < N
        mask = m_n[:, None] & (o_d < D)[None, :]
        normed, rstd = normalise(load_tile(x, x_row, first, o_n, o_d, mask), m_n, eps, D)
        z = load_tile(gate, gate_row, first, o_n, o_d, mask)
        change = load_tile(dy, dy_row, first, o_n, o_d, mask)
        sig = sigmoid(z)
        through = change * normed
        store_tile(dgate, D, first, o_n, o_d, mask, through * scale * sig * (1.0 + z * (1.0 - sig)))
        total += through * (z * sig)
        change = change * (z * sig) * scale
        mean = tl.sum(change * normed, 1)[:, None] / D
        store_tile(dx, D, first, o_n, o_d, mask, (change - normed * mean) * rstd)
        first += tl.num_programs(0) * BR
    tl.store(dweight + tl.program_id(0) * D + o_d, tl.sum(total, 0), mask=o_d < D)
