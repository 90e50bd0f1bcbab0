"""silu(gate) * up as Triton kernels, each one pass.

silu(gate) * up as Triton kernels, each one pass. Tiles of rows and columns, so that halves of a joined projection are
read where they lie.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import load_tile, sigmoid, store_tile


@triton.jit
def _place(N, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    """This program's tile: its first row (int64), rows from there, columns, and which of them there are."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    first = (tl.program_id(0) // blocks).to(tl.int64) * BR
    o_n = tl.arange(0, BR)
    o_d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    return first, o_n, o_d, (first + o_n < N)[:, None] & (o_d < D)[None, :]


@triton.jit(do_not_specialize=["N"])
def forward_kernel(gate, gate_row, up, up_row, y, N, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr):
    first, o_n, o_d, mask = _place(N, D, BR, BD)
    z = load_tile(gate, gate_row, first, o_n, o_d, mask)
    store_tile(y, D, first, o_n, o_d, mask, z * sigmoid(z) * load_tile(up, up_row, first, o_n, o_d, mask))


@triton.jit(do_not_specialize=["N"])
def backward_kernel(
    dy, dy_row, gate, gate_row, up, up_row, dgate, dup, N, D: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    first, o_n, o_d, mask = _place(N, D, BR, BD)
    change = load_tile(dy, dy_row, first, o_n, o_d, mask)
    z = load_tile(gate, gate_row, first, o_n, o_d, mask)
    sig = sigmoid(z)
    store_tile(dup, D, first, o_n, o_d, mask, change * z * sig)
    change *= load_tile(up, up_row, first, o_n, o_d, mask)
    store_tile(dgate, D, first, o_n, o_d, mask, change * sig * (1.0 + z * (1.0 - sig)))
