"""The short convolution's Triton kernels, in tiles of tokens and channels.

Tiles of tokens and channels; shifted rows are read again, from the cache.

Backward is one kernel: the gradient of the pre-activations is formed for a tile and the W-1 rows after it, and shifted
within the program, so that it never reaches memory: 6 bytes a number in 16 bits, beside 0.5 of partial sums. dweight is
summed tile by tile and then over the tiles, in a fixed order.

Compiled for Hopper with W = 4, SiLU and no tail (with one), nothing spilled:

    kernel    warps  registers  shared  programs on a multiprocessor
    forward   4      60         128 B   8
    backward  8      78 (111)   8 KiB   3 (2)
"""

import triton
import triton.language as tl

from hybrid_ft.kernels.rowwise import load_tile, sigmoid, store_tile


@triton.jit
def _segment_of(n, cu_seqlens, S, steps):
    """Of tokens n, int64: how many segments end at or before each. S past the last token; ``steps`` halvings
    suffice."""
    low = n * 0
    high = low + S
    for _ in range(steps):
        middle = tl.minimum((low + high) // 2, S - 1)
        ended = tl.load(cu_seqlens + middle + 1) <= n
        low = tl.where(ended, middle + 1, low)
        high = tl.where(ended, high, middle)
    return low


@triton.jit
def _history(x, stride, tail, first, o_n, o_d, start, segment, edge, mask, D: tl.constexpr, W: tl.constexpr):
    """Raw inputs at tokens first + o_n, float32, of segments whose first token is ``first + start``; before it their
    tail, or 0 without one. Of any shapes that broadcast with o_d. ``first`` and ``segment`` are int64, the rest int32.
    ``edge``: whether any token may lie before its segment; most tiles have none."""
    x += first * stride
    value = tl.load(x + (o_n * stride + o_d), mask=(o_n >= start) & mask, other=0.0).to(tl.float32)
    if tail is not None:  # noqa: SIM102  decided when it is compiled
        if edge:
            row = segment * (W - 1) + (o_n - start + W - 1)
            value += tl.load(tail + row * D + o_d, mask=(o_n < start) & mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _place(N, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """This program's tile: its first token (int64), tokens from there, channels, and which of them there are."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    first = (tl.program_id(0) // blocks).to(tl.int64) * BT
    o_n = tl.arange(0, BT)
    o_d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    return first, o_n, o_d, (first + o_n < N)[:, None] & (o_d < D)[None, :]


@triton.jit
def _starts(cu_seqlens, first, o_n, S, steps, W: tl.constexpr):
    """The segments of tokens first + o_n, where these begin from ``first``, no further back than matters, and whether
    any of the tokens sees its segment's tail."""
    segment = _segment_of(first + o_n, cu_seqlens, S, steps)
    start = tl.maximum(tl.load(cu_seqlens + segment) - first, -W).to(tl.int32)
    return segment, start, tl.max((o_n - start < W - 1).to(tl.int32), 0) > 0


@triton.jit
def _convolve(
    x, x_row, weight, bias, tail, first, o_n, o_d, start, segment, edge, mask, D: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Pre-activations [tokens, channels]."""
    pre = tl.zeros(mask.shape, tl.float32)
    if bias is not None:
        pre += tl.load(bias + o_d, mask=o_d < D, other=0.0).to(tl.float32)[None, :]
    for w in tl.static_range(W):
        tap = tl.load(weight + o_d * W + w, mask=o_d < D, other=0.0).to(tl.float32)
        o = o_n - (W - 1 - w)
        pre += tap * _history(
            x, x_row, tail, first, o[:, None], o_d[None, :], start[:, None], segment[:, None], edge, mask, D, W
        )
    return pre


@triton.jit(do_not_specialize=["N", "S", "steps"])
def forward_kernel(
    x, x_row, weight, bias, tail, cu_seqlens, y, N, S, steps,
    D: tl.constexpr, W: tl.constexpr, ACTIVATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    first, o_n, o_d, mask = _place(N, D, BT, BD)
    segment, start, edge = _starts(cu_seqlens, first, o_n, S, steps, W)
    pre = _convolve(x, x_row, weight, bias, tail, first, o_n, o_d, start, segment, edge, mask, D, W)
    store_tile(y, D, first, o_n, o_d, mask, pre * sigmoid(pre) if ACTIVATE else pre)


@triton.jit
def _change(pre, dy, ACTIVATE: tl.constexpr):
    """The gradient of the pre-activations."""
    if ACTIVATE:
        sig = sigmoid(pre)
        return dy * sig * (1.0 + pre * (1.0 - sig))
    return dy


@triton.jit(do_not_specialize=["N", "S", "steps"])
def backward_kernel(
    x, x_row, weight, bias, tail, cu_seqlens, dy, dy_row, d_final, dx, dtaps, N, S, steps,
    D: tl.constexpr, W: tl.constexpr, ACTIVATE: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """dx [N, D], and each tile's part of dweight, dtaps [row tiles, W, D] float32; with a bias [row tiles, W + 1, D],
    its gradient's part last. A row's input is read by itself, by the W-1 rows after it in its segment, and by the final
    tail: of the tile's rows the last W-1 are the next tile's, and here only for their pre-activations."""
    own: tl.constexpr = BT - W + 1
    tiles: tl.constexpr = (D + BD - 1) // BD
    row_tile = tl.program_id(0) // tiles
    first = row_tile.to(tl.int64) * own
    o_n = tl.arange(0, BT)
    o_d = (tl.program_id(0) % tiles) * BD + tl.arange(0, BD)
    mask = (first + o_n < N)[:, None] & (o_d < D)[None, :]
    segment, start, edge = _starts(cu_seqlens, first, o_n, S, steps, W)
    change = load_tile(dy, dy_row, first, o_n, o_d, mask)
    if ACTIVATE:
        pre = _convolve(x, x_row, weight, bias, tail, first, o_n, o_d, start, segment, edge, mask, D, W)
        change = _change(pre, change, ACTIVATE)

    here = (o_n < own)[:, None]
    summed = tl.where(here, change, 0.0)
    dtaps += row_tile.to(tl.int64) * ((W if bias is None else W + 1) * D)
    if bias is not None:
        tl.store(dtaps + W * D + o_d, tl.sum(summed, 0), mask=o_d < D)
    for w in tl.static_range(W):
        o = o_n - (W - 1 - w)
        past = _history(
            x, x_row, tail, first, o[:, None], o_d[None, :], start[:, None], segment[:, None], edge, mask, D, W
        )
        tl.store(dtaps + w * D + o_d, tl.sum(summed * past, 0), mask=o_d < D)

    end = tl.load(cu_seqlens + segment + 1, mask=first + o_n < N, other=0)
    end = tl.minimum(end - first, BT + W).to(tl.int32)
    next_row = tl.broadcast_to(tl.minimum(o_n + 1, BT - 1)[:, None], [BT, BD])
    total = tl.zeros([BT, BD], tl.float32)
    for ahead in tl.static_range(W):
        tap = tl.load(weight + o_d * W + (W - 1 - ahead), mask=o_d < D, other=0.0).to(tl.float32)
        # not by a product with 0: what lies past the segment may be NaN
        total += tl.where((o_n + ahead < end)[:, None], tap * change, 0.0)
        change = tl.gather(change, next_row, 0)
    mask = mask & here
    if d_final is not None:
        place = o_n - end + (W - 1)
        at = (segment * (W - 1) + place)[:, None] * D + o_d[None, :]
        total += tl.load(d_final + at, mask=mask & (place >= 0)[:, None], other=0.0).to(tl.float32)
    store_tile(dx, D, first, o_n, o_d, mask, total)


@triton.jit
def final_tail_kernel(
    x, x_row, tail, cu_seqlens, final_tail, D: tl.constexpr, W: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """One program per segment and block of channels."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    o_d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    start = tl.load(cu_seqlens + segment).to(tl.int64)
    end = tl.load(cu_seqlens + segment + 1).to(tl.int64)
    for i in tl.static_range(W - 1):
        n = end - (W - 1) + i
        value = _history(x, x_row, tail, start, (n - start).to(tl.int32), o_d, 0, segment, True, o_d < D, D, W)
        row = segment * (W - 1) + i
        tl.store(final_tail + row * D + o_d, value.to(final_tail.dtype.element_ty), mask=o_d < D)


@triton.jit
def initial_tail_kernel(
    x, x_row, weight, bias, tail, dy, dy_row, d_final, cu_seqlens, dtail,
    D: tl.constexpr, W: tl.constexpr, ACTIVATE: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The initial tail is read by its segment's first W-1 rows, whose pre-activations are formed again, and by the
    final tail where the segment is shorter."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    segment = (tl.program_id(0) // blocks).to(tl.int64)
    o_d = (tl.program_id(0) % blocks) * BD + tl.arange(0, BD)
    start = tl.load(cu_seqlens + segment).to(tl.int64)
    length = tl.load(cu_seqlens + segment + 1).to(tl.int64) - start
    for i in tl.static_range(W - 1):
        total = tl.zeros([BD], tl.float32)
        for t in tl.static_range(i + 1):
            there = (o_d < D) & (t < length)
            change = tl.load(dy + (start + t) * dy_row + o_d, mask=there, other=0.0).to(tl.float32)
            if ACTIVATE:
                pre = tl.zeros([BD], tl.float32)
                if bias is not None:
                    pre += tl.load(bias + o_d, mask=o_d < D, other=0.0).to(tl.float32)
                for w in tl.static_range(W):
                    tap = tl.load(weight + o_d * W + w, mask=o_d < D, other=0.0).to(tl.float32)
                    o = t - (W - 1) + w
                    pre += tap * _history(x, x_row, tail, start, o, o_d, 0, segment, True, there, D, W)
                change = _change(pre, change, ACTIVATE)
            tap = tl.load(weight + o_d * W + (i - t), mask=o_d < D, other=0.0).to(tl.float32)
            total += tap * change
        if d_final is not None:
            row = segment * (W - 1) + i - length
            total += tl.load(d_final + row * D + o_d, mask=(o_d < D) & (i >= length), other=0.0).to(tl.float32)
        tl.store(dtail + (segment * (W - 1) + i) * D + o_d, total.to(dtail.dtype.element_ty), mask=o_d < D)


@triton.jit
def convolve_step(x, tail, weight, o_d, mask, D: tl.constexpr, W: tl.constexpr):
    """Outputs of one token's channels o_d, float32. ``x`` and ``tail`` are its row's, neither with gaps; the tail's
    inputs are rounded as the new tail keeps them."""
    pre = tl.zeros(o_d.shape, tl.float32)
    for w in tl.static_range(W):
        if w < W - 1:
            value = tl.load(tail + (w * D + o_d), mask=mask, other=0.0).to(x.dtype.element_ty)
        else:
            value = tl.load(x + o_d, mask=mask, other=0.0)
        pre += tl.load(weight + (o_d * W + w), mask=mask, other=0.0).to(tl.float32) * value.to(tl.float32)
    return pre * sigmoid(pre)


@triton.jit
def move_tail(x, tail, new_tail, o_d, mask, D: tl.constexpr, W: tl.constexpr):
    """One token's new tail in the channels o_d. Apart from the convolution, as a store would hold up the next load."""
    for w in tl.static_range(1, W):
        if w < W - 1:
            value = tl.load(tail + (w * D + o_d), mask=mask, other=0.0).to(x.dtype.element_ty)
        else:
            value = tl.load(x + o_d, mask=mask, other=0.0)
        tl.store(new_tail + ((w - 1) * D + o_d), value, mask=mask)


@triton.jit
def step_kernel(
    x, x_row, tail, tail_row, weight, y, new_tail, D: tl.constexpr, W: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """One token of each row. A tail without gaps within a row."""
    blocks: tl.constexpr = (D + BD - 1) // BD
    row = (tl.program_id(0) // blocks).to(tl.int64)
    o_d = tl.program_id(0) % blocks * BD + tl.arange(0, BD)
    mask = o_d < D
    x += row * x_row
    tail += row * tail_row
    value = convolve_step(x, tail, weight, o_d, mask, D, W)
    tl.store(y + row * D + o_d, value.to(y.dtype.element_ty), mask=mask)
    move_tail(x, tail, new_tail + row * ((W - 1) * D), o_d, mask, D, W)
