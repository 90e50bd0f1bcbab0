"""Memory, grids and launches: what runs in which order. Everything is queued; nothing waits for the device."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.triton.gradients import key_kernel, query_kernel
from hybrid_ft.kernels.gated_delta_rule.triton.intra import inverse_kernel, weights_kernel
from hybrid_ft.kernels.gated_delta_rule.triton.scans import backward_kernel, forward_kernel
from hybrid_ft.kernels.gated_delta_rule.triton.settings import Settings, settings_for
from hybrid_ft.kernels.gated_delta_rule.triton.tiles import ROWS, Chunks, Dims, Heads

CHUNK = 64
DOTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


class Forward(NamedTuple):
    """o [B, T, HV, V] in v's dtype; final_state [S, HV, K, V] float32; what backward reads, chunk by chunk: gates
    [NT, HV, ROWS, BT] float32, inverse [NT, HV, BT, BT], and if they are kept, else empty, states [NT, HV, V, K] and
    y [B, T, HV, V]. In q's dtype where none is named."""

    o: Tensor
    final_state: Tensor
    gates: Tensor
    inverse: Tensor
    states: Tensor
    y: Tensor


class Backward(NamedTuple):
    """In the shapes of the inputs and q's dtype, but dg and dbeta [B, T, HV] and d_initial [S, HV, K, V] in float32."""

    dq: Tensor
    dk: Tensor
    dv: Tensor
    dg: Tensor
    dbeta: Tensor
    d_initial: Tensor


class Call:
    """One call's sizes."""

    def __init__(self, q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> None:
        self.batch, self.length, self.heads, self.key_dim = q.shape
        self.value_heads, self.value_dim = v.shape[2:]
        self.like = q
        self.tokens_in_row = max(1, self.length)  # what a token's number is divided by
        if cu_seqlens is None:
            self.segments = self.batch
            self.chunks = self.batch * -(-self.length // CHUNK)
        else:
            self.segments = cu_seqlens.shape[0] - 1
            self.chunks = self.length // CHUNK + self.segments  # the true number is known to the device alone

    def dims(self, halves: bool = False) -> Dims:
        """``halves``: 128 is 64 + 64."""
        first = 64 if halves and self.key_dim == 128 else 1 << (self.key_dim.bit_length() - 1)
        rest = self.key_dim - first
        second = max(16, triton.next_power_of_2(rest)) if rest else 0
        sizes = (self.heads, self.value_heads, self.key_dim, self.value_dim, first, second, CHUNK)
        return Dims(*(tl.constexpr(x) for x in (*sizes, DOTS[self.like.dtype])))

    def memory(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.like.dtype, device=self.like.device)

    def square(self) -> Tensor:
        return self.memory(self.chunks, self.value_heads, CHUNK, CHUNK)

    def states(self) -> Tensor:
        return self.memory(self.chunks, self.value_heads, self.value_dim, self.key_dim)

    def tokens(self, *last: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.memory(self.batch, self.length, self.value_heads, *last, dtype=dtype)

    def outer_state(self) -> Tensor:
        return self.memory(self.segments, self.value_heads, self.key_dim, self.value_dim, dtype=torch.float32)

    def lanes(self, block: int) -> int:
        return self.segments * self.value_heads * -(-self.value_dim // block)


def cut(call: Call, cu_seqlens: Tensor | None) -> Chunks:
    """See ``Chunks``. A dense batch is segments of one length."""
    device = call.like.device
    if cu_seqlens is None:
        cu_seqlens = torch.arange(call.batch + 1, dtype=torch.int32, device=device) * call.length
    cu_seqlens = cu_seqlens.to(device, torch.int32)
    lengths = cu_seqlens.diff()
    counts = (lengths + (CHUNK - 1)) // CHUNK
    first_chunk = torch.zeros_like(cu_seqlens)
    torch.cumsum(counts, 0, dtype=torch.int32, out=first_chunk[1:])
    numbers = torch.arange(call.chunks, dtype=torch.int32, device=device)
    segment_of = torch.searchsorted(first_chunk[1:], numbers, right=True, out_int32=True)
    segment_of = torch.where(segment_of < call.segments, segment_of, -1)
    order = lengths.argsort(descending=True, stable=True).to(torch.int32)
    return Chunks(cu_seqlens, first_chunk, segment_of, order)


def forward_memory(q: Tensor, v: Tensor, cu_seqlens: Tensor | None, keep_states: bool) -> Forward:
    call = Call(q, v, cu_seqlens)
    gates = call.memory(call.chunks, call.value_heads, ROWS.value, CHUNK, dtype=torch.float32)
    states = call.states() if keep_states else call.memory(0)
    y = call.tokens(call.value_dim) if keep_states else call.memory(0)
    return Forward(call.tokens(call.value_dim), call.outer_state(), gates, call.square(), states, y)


def run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    scale: float,
    use_qk_l2norm: bool,
    keep_states: bool,
) -> Forward:
    call = Call(q, v, cu_seqlens)
    chunks, use = cut(call, cu_seqlens), settings_for(q)
    out = forward_memory(q, v, cu_seqlens, keep_states)
    weights = call.square()
    grid = (call.chunks * call.value_heads,)
    if grid[0]:
        weights_kernel[grid](
            heads(q), heads(k), heads(g), heads(beta), out.gates, weights, chunks, scale, call.tokens_in_row,
            call.dims(), L2NORM=use_qk_l2norm, FIRST=True, num_warps=use.weights_warps,
        )  # fmt: skip
        inverse_kernel[grid](
            heads(k), out.gates, out.inverse, chunks, call.tokens_in_row, call.dims(), num_warps=use.inverse_warps
        )
    if call.segments:
        block = block_of(call.value_dim, use)
        forward_kernel[(call.lanes(block),)](
            heads(q), heads(k), heads(v), out.gates, out.inverse, weights, contiguous(initial_state), out.o, out.y,
            out.states, out.final_state, chunks, call.tokens_in_row, call.dims(use.halves), BV=block, KEEP=keep_states,
            APART=use.apart, STAGES=use.forward_stages, num_warps=use.forward_warps,
        )  # fmt: skip
    return out


def backward_memory(q: Tensor, do: Tensor, cu_seqlens: Tensor | None) -> Backward:
    call = Call(q, do, cu_seqlens)
    dq, dk = (call.memory(*q.shape) for _ in range(2))
    dg, dbeta = (call.tokens(dtype=torch.float32) for _ in range(2))
    return Backward(dq, dk, call.tokens(call.value_dim), dg, dbeta, call.outer_state())


def run_backward(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    gates: Tensor,
    inverse: Tensor,
    states: Tensor,
    y: Tensor,
    scale: float,
    use_qk_l2norm: bool,
) -> Backward:
    """``states`` and ``y`` are computed again from v where they are empty; where they are not, v is not needed."""
    call = Call(q, do, cu_seqlens)
    chunks, use = cut(call, cu_seqlens), settings_for(q)
    out = backward_memory(q, do, cu_seqlens)
    kept = v is None
    if not kept:
        states, y = call.states(), call.tokens(call.value_dim)
    weights, d_states = call.square(), call.states()
    block = block_of(call.value_dim, use)
    grid = (call.chunks * call.value_heads,)
    if grid[0]:
        weights_kernel[grid](
            heads(q), heads(k), None, None, gates, weights, chunks, scale, call.tokens_in_row, call.dims(),
            L2NORM=use_qk_l2norm, FIRST=False, num_warps=use.weights_warps,
        )  # fmt: skip
    if call.segments:
        lanes = call.lanes(block)
        backward_kernel[(lanes if kept else 2 * lanes,)](
            heads(q), heads(k), None if v is None else heads(v), heads(do), gates, inverse, weights,
            contiguous(initial_state), contiguous(d_final), y, states, out.dv, d_states, out.d_initial, chunks, lanes,
            call.tokens_in_row, call.dims(use.halves), BV=block, KEPT=kept, APART=use.apart, STAGES=use.backward_stages,
            num_warps=use.backward_warps,
        )  # fmt: skip
    if not grid[0]:
        return out
    group = call.value_heads // call.heads
    dq, dk = out[:2]
    if group > 1:
        dq, dk = (call.tokens(call.key_dim, dtype=torch.float32) for _ in range(2))
    change = call.memory(call.chunks, call.value_heads, CHUNK, dtype=torch.float32)
    query_kernel[grid](
        heads(q), heads(k), heads(do), gates, weights, y, states, d_states, dq, change, chunks, scale, call.tokens_in_row,
        call.dims(), BV=block, L2NORM=use_qk_l2norm, STAGES=use.query_stages, num_warps=use.query_warps,
    )  # fmt: skip
    key_kernel[grid](
        heads(q), heads(k), gates, weights, y, states, d_states, out.dv, dk, out.dg, out.dbeta, change, chunks,
        call.tokens_in_row, call.dims(), BV=block, L2NORM=use_qk_l2norm, STAGES=use.key_stages, num_warps=use.key_warps,
    )  # fmt: skip
    if group > 1:
        for total, shares in ((out.dq, dq), (out.dk, dk)):
            total.copy_(shares.unflatten(2, (call.heads, group)).sum(3))
    return out


def block_of(value_dim: int, use: Settings) -> int:
    """V columns of a state tile."""
    return min(use.block, max(16, triton.next_power_of_2(value_dim)))


def heads(x: Tensor) -> Heads:
    """By strides, as it lies; only a last dimension that is not contiguous (an expanded gradient, say) is copied."""
    if x.ndim == 4 and x.stride(3) != 1:
        x = x.contiguous()
    return Heads(x, *x.stride()[:3])


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
