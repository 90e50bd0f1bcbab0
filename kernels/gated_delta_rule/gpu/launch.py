"""Grids and launches in order; nothing waits for the device."""

from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.gpu.call import CHUNK, Backward, Call, Forward, Inputs, Kept, cut
from hybrid_ft.kernels.gated_delta_rule.gpu.gradients import key_kernel, query_kernel
from hybrid_ft.kernels.gated_delta_rule.gpu.intra import weights_kernel
from hybrid_ft.kernels.gated_delta_rule.gpu.scans import backward_kernel, forward_kernel
from hybrid_ft.kernels.gated_delta_rule.gpu.settings import Launch, Settings, settings_for
from hybrid_ft.kernels.gated_delta_rule.gpu.splits import join_kernel, summary_backward_kernel, summary_kernel
from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import Chunks, Heads, Pieces, Scan, Within
from hybrid_ft.kernels.launching import launch


def run_forward(inputs: Inputs, keep_states: bool) -> Forward:
    q, v = inputs.q, inputs.v
    assert v is not None and inputs.g is not None and inputs.beta is not None
    call = Call(q, v, inputs.cu_seqlens)
    chunks, use = cut(call, inputs.cu_seqlens), settings_for(q)
    out = call.forward_memory(keep_states, inputs.correct)
    kept, weights = out.kept, call.square()
    _weights(inputs, call, use, chunks, kept, weights, first=True)
    if not call.segments:
        return out
    initial, final, segments = contiguous(inputs.initial_state), out.final_state, call.segments
    pieces = call.pieces_of(chunks) if call.piece else None
    if pieces:
        _summarise(inputs, call, use, pieces, kept, final := call.outer_states(call.pieces))
        _join(call, use, pieces, initial, final, kept, kept.starts, backward=False)
        chunks, initial, segments = pieces.chunks, kept.starts, call.pieces
    block, within = block_of(call.value_dim, use), within_chunks(inputs, kept, weights)
    lanes = call.lanes(segments, block)
    settings = use.alone if call.alone(lanes) else use.forward
    launch(
        forward_kernel, lanes,
        heads(q), heads(inputs.k), heads(v), within, initial, out.o, kept.y, kept.states, final, chunks,
        call.tokens_in_row, call.dims(use.halves), scan(block, use, settings), KEEP=keep_states, **settings.options(),
    )  # fmt: skip
    if pieces:
        torch.index_select(final, 0, pieces.first[1:] - 1, out=out.final_state)
    return out


def run_backward(inputs: Inputs, kept: Kept, do: Tensor, d_final: Tensor | None) -> Backward:
    """Without ``inputs.v`` the states and Y were kept, else they are computed again."""
    q, v = inputs.q, inputs.v
    call = Call(q, do, inputs.cu_seqlens)
    chunks, use = cut(call, inputs.cu_seqlens), settings_for(q)
    out = call.backward_memory()
    if v is not None:
        kept = kept._replace(states=call.states(), y=call.tokens(call.value_dim))
    weights, d_states = call.square(), call.states()
    _weights(inputs, call, use, chunks, kept, weights, first=False)
    if call.segments:
        _scan_backward(inputs, call, use, chunks, kept, weights, do, d_final, d_states, out)
    if call.chunks * call.value_heads:
        # nothing reads the weights after the scan
        _gradients(inputs, call, use, chunks, kept, weights, do, d_states, out)
    return out


def _weights(
    inputs: Inputs, call: Call, use: Settings, chunks: Chunks, kept: Kept, weights: Tensor, first: bool
) -> None:
    """Fills the weights; ``first``: the gates and the inverse as well, which backward has."""
    g, beta = ((None, 0, 0, 0) if x is None else heads(x) for x in (inputs.g, inputs.beta))
    if call.chunks * call.value_heads:
        launch(
            weights_kernel, call.chunks * call.value_heads,
            heads(inputs.q), heads(inputs.k), *g, *beta, kept.gates, weights,
            kept.inverse if first and inputs.correct else None, chunks, inputs.scale, call.tokens_in_row, call.dims(),
            L2NORM=inputs.use_qk_l2norm, FIRST=first, **use.weights.options(),
        )  # fmt: skip


def _summarise(inputs: Inputs, call: Call, use: Settings, pieces: Pieces, kept: Kept, sums: Tensor) -> None:
    """A and M of every piece, see splits.py."""
    assert inputs.v is not None
    block, dims = block_of(call.value_dim, use), call.dims(use.halves)
    lanes, within = call.lanes(call.pieces, block), within_chunks(inputs, kept, None)
    launch(
        summary_kernel, lanes + call.lanes(call.pieces, block, call.key_dim),
        heads(inputs.k), heads(inputs.v), within, sums, kept.moves, pieces, lanes, call.tokens_in_row, dims,
        call.dims(use.halves, call.key_dim), scan(block, use, use.summary), **use.summary.options(),
    )  # fmt: skip


def _join(
    call: Call,
    use: Settings,
    pieces: Pieces,
    outer: Tensor | None,
    sums: Tensor,
    kept: Kept,
    states: Tensor,
    backward: bool,
) -> None:
    block = block_of(call.value_dim, use)
    launch(
        join_kernel, call.lanes(call.segments, block),
        outer, sums, kept.moves, states, pieces, call.dims(use.halves), BV=block, BACKWARD=backward,
        **use.join.options(),
    )  # fmt: skip


def _scan_backward(
    inputs: Inputs,
    call: Call,
    use: Settings,
    chunks: Chunks,
    kept: Kept,
    weights: Tensor,
    do: Tensor,
    d_final: Tensor | None,
    d_states: Tensor,
    out: Backward,
) -> None:
    """Fills d_states, dv and d_initial, and the states and Y where v is there to compute them from."""
    q, k, v = heads(inputs.q), heads(inputs.k), None if inputs.v is None else heads(inputs.v)
    initial, d_final, d_initial = contiguous(inputs.initial_state), contiguous(d_final), out.d_initial
    block, dims, segments = block_of(call.value_dim, use), call.dims(use.halves), call.segments
    within = within_chunks(inputs, kept, weights)
    pieces = call.pieces_of(chunks) if call.cut_backward(1 if v is None else 2) else None
    if pieces:
        d_initial, d_ends = (call.outer_states(call.pieces) for _ in range(2))
        launch(
            summary_backward_kernel, call.lanes(call.pieces, block),
            q, k, heads(do), within, d_initial, pieces, call.tokens_in_row, dims,
            scan(block, use, use.summary_backward), **use.summary_backward.options(),
        )  # fmt: skip
        _join(call, use, pieces, d_final, d_initial, kept, d_ends, backward=True)
        chunks, initial, d_final, segments = pieces.chunks, kept.starts, d_ends, call.pieces
    lanes = call.lanes(segments, block)
    launch(
        backward_kernel, lanes if v is None else 2 * lanes,
        q, k, v, heads(do), within, initial, d_final, kept.y, kept.states, out.dv, d_states, d_initial, chunks, lanes,
        call.tokens_in_row, dims, scan(block, use, use.backward), KEPT=v is None, **use.backward.options(),
    )  # fmt: skip
    if pieces:
        torch.index_select(d_initial, 0, pieces.first[:-1], out=out.d_initial)


def _gradients(
    inputs: Inputs,
    call: Call,
    use: Settings,
    chunks: Chunks,
    kept: Kept,
    pairs: Tensor,
    do: Tensor,
    d_states: Tensor,
    out: Backward,
) -> None:
    """Fills dq, dk, dg and dbeta. ``pairs`` is memory for what the first kernel leaves for the second."""
    q, k, programs = heads(inputs.q), heads(inputs.k), call.chunks * call.value_heads
    block, group = min(use.gradient_block, block_of(call.value_dim, use)), call.value_heads // call.heads
    if block >= call.value_dim:
        block = max(16, block // 2)  # the compiler unrolls a loop of one step: all that follows would be live in it
    dq, dk = out[:2]
    if group > 1:
        dq, dk = (call.tokens(call.key_dim, dtype=torch.float32) for _ in range(2))
    change = call.memory(call.chunks, call.value_heads, CHUNK, dtype=torch.float32)
    launch(
        query_kernel, programs,
        q, k, heads(do), kept.gates, pairs, kept.y, kept.states, dq, change, chunks,
        inputs.scale, call.tokens_in_row, call.dims(), BV=block, L2NORM=inputs.use_qk_l2norm, STAGES=use.query.stages,
        **use.query.options(),
    )  # fmt: skip
    launch(
        key_kernel, programs,
        q, k, kept.gates, pairs, kept.y, kept.states, d_states, out.dv, dk, out.dg, out.dbeta, change, chunks,
        call.tokens_in_row, call.dims(), BV=block, L2NORM=inputs.use_qk_l2norm, STAGES=use.key.stages,
        CORRECT=inputs.correct, **use.key.options(),
    )  # fmt: skip
    if group > 1:
        for total, shares in ((out.dq, dq), (out.dk, dk)):
            total.copy_(shares.unflatten(2, (call.heads, group)).sum(3))


def within_chunks(inputs: Inputs, kept: Kept, weights: Tensor | None) -> Within:
    return Within(kept.gates, kept.inverse if inputs.correct else None, weights)


def block_of(value_dim: int, use: Settings) -> int:
    """V columns of a state tile."""
    return min(use.block, max(16, 1 << (value_dim - 1).bit_length()))


def scan(block: int, use: Settings, of: Launch) -> Scan:
    return _scan(block, use.apart, of.stages)


@cache
def _scan(block: int, apart: bool, stages: int) -> Scan:
    return Scan(*(tl.constexpr(x) for x in (block, apart, stages)))


def heads(x: Tensor) -> Heads:
    """By strides, as it lies; only a last dimension that is not contiguous (an expanded gradient, say) is copied."""
    if x.ndim == 4 and x.stride(3) != 1:
        x = x.contiguous()
    return Heads(x, *x.stride()[:3])


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
