"""One long segment scanned in pieces, which are joined afterwards.

Over a piece, the state at its end is an affine function of the state at its start; V-first, from scans.py:

    S_end  = S_start M + A          dS_start = dS_end M^T + G

A and G are what the scans give from a state of zeros, M what the forward scan makes of the identity's rows with no v.
So three passes, each over all pieces at once: A and M; then the state at every piece's start, one small product after
another; then the scan itself, from those. Backward likewise, from the last piece to the first, with the same M.
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.gated_delta_rule.gpu.scans import (
    load_outer,
    scan_backward,
    scan_forward,
    store_outer,
)
from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import (
    dot_onto,
    publish,
)

BLOCK = tl.constexpr(32)


@triton.jit(do_not_specialize=["T", "lanes"])
def summary_kernel(k, v, within, sums, moves, pieces, lanes, T, d, square, use):
    """The first ``lanes`` programs write A, but for a segment's last piece, whose end nothing begins at; the others
    M^T, but for segments of one piece. ``square`` is ``d`` with V = K, the size of M."""
    pid = tl.program_id(0)
    chunks = pieces.chunks
    if pid < lanes:
        piece, count = _piece(pid // (d.HV * tl.cdiv(d.V, use.BV)), pieces)
        if piece + 1 < count:
            scan_forward(pid, None, k, v, within, None, None, None, None, sums, chunks, T, d, use, False)
    else:
        piece, count = _piece((pid - lanes) // (d.HV * tl.cdiv(d.K, use.BV)), pieces)
        if count > 1:
            scan_forward(
                pid - lanes, None, k, None, within, None, None, None, None, moves, chunks, T, square, use, False
            )


@triton.jit(do_not_specialize=["T"])
def summary_backward_kernel(q, k, do, within, sums, pieces, T, d, use):
    """Writes G, but for a segment's first piece."""
    piece, _ = _piece(tl.program_id(0) // (d.HV * tl.cdiv(d.V, use.BV)), pieces)
    if piece > 0:
        scan_backward(tl.program_id(0), q, k, do, within, None, None, None, sums, pieces.chunks, T, d, use)


@triton.jit
def join_kernel(outer, sums, moves, states, pieces, d, BV: tl.constexpr, BACKWARD: tl.constexpr):
    """``states`` [NP, HV, K, V]: from the initial states ``outer``, the state at every piece's start; with BACKWARD,
    from the final states' gradient, that of the state at every piece's end. One program per segment, value head and V
    tile. The pieces that are too many are nobody's, and stay as they are."""
    tiles = tl.cdiv(d.V, BV)
    segment = tl.program_id(0) // (d.HV * tiles)
    head = tl.program_id(0) // tiles % d.HV
    o_v = tl.program_id(0) % tiles * BV + tl.arange(0, BV)
    first = tl.load(pieces.first + segment)
    count = tl.load(pieces.first + segment + 1) - first
    s1, s2 = load_outer(outer, (segment.to(tl.int64) * d.HV + head) * (d.K * d.V), o_v, d, BV)
    for i in range(count):
        if BACKWARD:
            piece = first + count - 1 - i
        else:
            piece = first + i
        lane = piece.to(tl.int64) * d.HV + head
        store_outer(states, lane * (d.K * d.V), s1, s2, o_v, d)
        if i < count - 1:
            publish()  # the product's operand is read from there
            s1, s2 = _through(states, sums, moves, lane, o_v, d, BV, BACKWARD)


@triton.jit
def _piece(place, pieces):
    """Of the piece at ``place`` of the order: its number in its segment, and how many that has. Nobody's piece passes
    for a segment's only one, which needs nothing from here."""
    piece = tl.load(pieces.chunks.order + place)
    owner = tl.load(pieces.owner + piece)
    first = tl.load(pieces.first + tl.maximum(owner, 0))
    count = tl.load(pieces.first + tl.maximum(owner, 0) + 1) - first
    return tl.where(owner < 0, 0, piece - first), tl.where(owner < 0, 1, count)


@triton.jit
def _through(states, sums, moves, lane, o_v, d, BV: tl.constexpr, BACKWARD: tl.constexpr):
    """The state (its gradient) past a piece, from ``states`` before it."""
    state = lane * (d.K * d.V)
    s1, s2 = load_outer(sums, state, o_v, d, BV)
    for first in range(0, d.K, BLOCK):
        o_k = first + tl.arange(0, BLOCK)
        mask = (o_k < d.K)[None, :] & (o_v < d.V)[:, None]
        a = tl.load(states + state + o_k[None, :] * d.V + o_v[:, None], mask=mask, other=0.0)
        s1 = dot_onto(s1, a, _move(moves + lane * (d.K * d.K), o_k, tl.arange(0, d.K1), d, BACKWARD))
        if d.K2:
            s2 = dot_onto(s2, a, _move(moves + lane * (d.K * d.K), o_k, tl.arange(0, d.K2) + d.K1, d, BACKWARD))
    return s1, s2


@triton.jit
def _move(moves, o_row, o_col, d, BACKWARD: tl.constexpr):
    """Rows and columns of M, or of M^T, which is what memory holds."""
    mask = (o_row < d.K)[:, None] & (o_col < d.K)[None, :]
    if BACKWARD:
        at = o_row[:, None] * d.K + o_col[None, :]
    else:
        at = o_col[None, :] * d.K + o_row[:, None]
    return tl.load(moves + at, mask=mask, other=0.0)
