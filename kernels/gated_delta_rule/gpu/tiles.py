"""Shared by the kernels: arguments, chunks, tiles, products over split keys.

A head's K columns are two tiles, K1 = the largest power of two in K and K2 = the next power of two that holds the rest
(96 = 64 + 32, 128 = 128 + 0): tiles must be powers of two, and padding 96 to 128 would cost a third. Every operation on
a second tile stands behind ``if d.K2:``; where there is none, the name is bound to the first and never used.

States are V-first, [V, K]: V is the M dimension of every product with a state, so that the state is the register
operand of a warp-group product on Hopper and a K tile of 32 does not fall back to slower instructions.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from hybrid_ft.kernels.launching import compiled_in


class Heads(NamedTuple):
    """A [B, T, heads, ...] tensor, its last dimension (if it has four) contiguous: address and strides."""

    x: Any
    b: Any
    t: Any
    h: Any


@compiled_in
class Dims(NamedTuple):
    """Compile-time sizes. DOT is the dtype of the products' operands, and of what is kept between kernels."""

    H: Any
    HV: Any
    K: Any
    V: Any
    K1: Any
    K2: Any
    BT: Any
    DOT: Any


class Chunks(NamedTuple):
    """How segments are cut, on the device. int32: cu_seqlens [S+1]; first_chunk [S+1], the number of a segment's first
    chunk; segment_of [NT], a chunk's segment, -1 for the chunks that the upper bound NT has too many; order [S], the
    segments by falling length."""

    cu_seqlens: Any
    first_chunk: Any
    segment_of: Any
    order: Any


class Pieces(NamedTuple):
    """How segments are cut into pieces of whole chunks, on the device: first [S+1], the number of a segment's first
    piece; owner [NP], a piece's segment, -1 where there are not as many; both int32. ``chunks``: as if pieces were
    segments."""

    first: Any
    owner: Any
    chunks: Chunks


class Within(NamedTuple):
    """What is computed within every chunk alone, see intra.py: gates [NT, HV, ROWS, BT], inverse and weights
    [NT, HV, BT, BT]; None where nothing reads them. No inverse: nothing is corrected."""

    gates: Any
    inverse: Any
    weights: Any


@compiled_in
class Scan(NamedTuple):
    """How a pass over the chunks is compiled: V columns of its state tile, see ``scans._read``, stages of its loads."""

    BV: Any
    APART: Any
    STAGES: Any


# Rows of a chunk's ``gates``, float32 [NT, HV, ROWS, BT]. Past the segment's end all are 0 but the sums, which stay.
READ_Q = tl.constexpr(0)  # scale * decay from the chunk's start to the token * norm of q
READ_K = tl.constexpr(1)  # decay from the chunk's start to the token * norm of k
WRITE_K = tl.constexpr(2)  # decay from the token to the chunk's end * norm of k * beta
CUM = tl.constexpr(3)  # cumsum(g) / ln 2, rounded down to 64ths
CUM_REST = tl.constexpr(4)  # the rest of it: one float32 of several hundred would be off by 1e-5
BETA = tl.constexpr(5)
NORM_Q = tl.constexpr(6)  # 1 / sqrt(|q|^2 + eps), or 1
NORM_K = tl.constexpr(7)
ROWS = tl.constexpr(8)
STEP = tl.constexpr(16)  # keys or tokens; a head size is a multiple of it


@triton.jit
def place(chunks, d):
    """Of a program per chunk and value head: the chunk's segment (-1: no such chunk), first token in int64, chunk and
    value head as one number in int64, value head, how many tokens are left of the segment."""
    chunk = tl.program_id(0) // d.HV
    head = tl.program_id(0) % d.HV
    segment = tl.load(chunks.segment_of + chunk)
    known = tl.maximum(segment, 0)
    offset = (chunk - tl.load(chunks.first_chunk + known)) * d.BT
    start = tl.load(chunks.cu_seqlens + known) + offset
    left = tl.load(chunks.cu_seqlens + known + 1) - start
    return segment, start.to(tl.int64), chunk.to(tl.int64) * d.HV + head, head, left


@triton.jit
def token(heads, start, head, T):
    """Address of token ``start`` (int64, numbered over the batch) of a head. Offsets past 2^31 are all in here; those
    within a chunk fit int32."""
    return at_token(heads.x, heads.b, heads.t, heads.h, start, head, T)


@triton.jit
def at_token(x, b, t, h, start, head, T):
    """``token``, of a tensor and its strides."""
    return x + (start // T) * b + (start % T) * t + head.to(tl.int64) * h


@triton.jit
def gates_of(gates, row, d):
    """Those of chunk and value head ``row``, see ``place``."""
    return gates + row * (ROWS * d.BT)


@triton.jit
def gate(gates, NAME: tl.constexpr, o, d):
    """Row NAME of a chunk's gates, at its tokens ``o``."""
    return tl.load(gates + NAME * d.BT + o)


@triton.jit
def square(x, row, d):
    """Address of the [BT, BT] of chunk and value head ``row``."""
    return x + row * (d.BT * d.BT)


@triton.jit
def state(x, row, d):
    """Address of the [V, K] of chunk and value head ``row``."""
    return x + row * (d.K * d.V)


@triton.jit
def publish():
    """From here every warp reads what all have written to memory."""
    tl.debug_barrier()


@triton.jit
def forget():
    """What is loaded after this is not loaded before it and held in registers that the program does not have."""
    tl.debug_barrier()


@triton.jit
def load_rows(x, stride, o_row, o_col, m_row, COLS: tl.constexpr, EVEN: tl.constexpr):
    """[rows, columns] of rows that are ``stride`` apart; 0 where ``m_row`` is false or, unless EVEN, past COLS."""
    mask = m_row[:, None]
    if not EVEN:
        mask = mask & (o_col < COLS)[None, :]
    return tl.load(x + o_row[:, None] * stride + o_col[None, :], mask=mask, other=0.0)


@triton.jit
def load_columns(x, stride, o_row, o_col, m_row, COLS: tl.constexpr, EVEN: tl.constexpr):
    """``load_rows`` transposed, [columns, rows]."""
    mask = m_row[None, :]
    if not EVEN:
        mask = mask & (o_col < COLS)[:, None]
    return tl.load(x + o_row[None, :] * stride + o_col[:, None], mask=mask, other=0.0)


@triton.jit
def store_rows(x, stride, o_row, o_col, m_row, value, COLS: tl.constexpr, EVEN: tl.constexpr):
    mask = m_row[:, None]
    if not EVEN:
        mask = mask & (o_col < COLS)[None, :]
    tl.store(x + o_row[:, None] * stride + o_col[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def store_columns(x, stride, o_row, o_col, m_row, value, COLS: tl.constexpr, EVEN: tl.constexpr):
    mask = m_row[None, :]
    if not EVEN:
        mask = mask & (o_col < COLS)[:, None]
    tl.store(x + o_row[None, :] * stride + o_col[:, None], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def load_keys(x, stride, o_row, m_row, d):
    """Both column tiles of q or k, [rows, K1] and [rows, K2]."""
    x1 = load_rows(x, stride, o_row, tl.arange(0, d.K1), m_row, d.K, True)
    x2 = x1
    if d.K2:
        x2 = load_rows(x, stride, o_row, tl.arange(0, d.K2) + d.K1, m_row, d.K, d.K1 + d.K2 == d.K)
    return x1, x2


@triton.jit
def load_square(x, d):
    """[BT, BT]"""
    o = tl.arange(0, d.BT)
    return tl.load(x + o[:, None] * d.BT + o[None, :])


@triton.jit
def operand(x, d):
    """To the products' dtype. float16 saturates: a key of zeros has a norm factor of 1000, and infinity times that key
    would be NaN."""
    if d.DOT == tl.float16:
        x = tl.clamp(x.to(tl.float32), -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    return x.to(d.DOT)


@triton.jit
def dot(a, b):
    """float32 operands in three passes of tf32, which is as good as float32; others as they are."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def dot_onto(x, a, b):
    """x + a b, in x's accumulator."""
    return tl.dot(a, b, x, input_precision="tf32x3")


@triton.jit
def dot_keys(a1, a2, b1, b2, d):
    """a b^T over both key tiles."""
    x = dot(a1, tl.trans(b1))
    if d.K2:
        x = dot_onto(x, a2, tl.trans(b2))
    return x


@triton.jit
def chunk_decay(gates, d):
    """Decay over a whole chunk, from its ``gates``."""
    return tl.exp2(gate(gates, CUM, d.BT - 1, d)) * tl.exp2(gate(gates, CUM_REST, d.BT - 1, d))


@triton.jit
def pair_decay(gates, o_row, o_col, d):
    """[rows, columns]: decay from token o_col to token o_row of a chunk, 0 where o_col is later. The difference of the
    sums is taken before the exponential: exp(c_i) exp(-c_j) overflows."""
    past = gate(gates, CUM, o_row, d)[:, None] - gate(gates, CUM, o_col, d)[None, :]
    rest = gate(gates, CUM_REST, o_row, d)[:, None] - gate(gates, CUM_REST, o_col, d)[None, :]
    return tl.exp2(tl.where(o_row[:, None] >= o_col[None, :], past + rest, float("-inf")))
