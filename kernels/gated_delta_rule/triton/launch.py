"""Memory, grids and launches: what runs in which order. Everything is queued; nothing waits for the device."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.triton.gradients import key_kernel, query_kernel
from hybrid_ft.kernels.gated_delta_rule.triton.intra import intra_kernel
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
    """In the shapes and dtypes of the inputs; d_initial [S, HV, K, V] float32."""

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
        if cu_seqlens is None:
            self.segments = self.batch
            self.chunks = self.batch * -(-self.length // CHUNK)
        else:
            self.segments = cu_seqlens.shape[0] - 1
            self.chunks = self.length // CHUNK + self.segments  # the true number is known to the device alone

    def dims(self, scan: bool = False) -> Dims:
        """For a scan 128 is 64 + 64: with one tile of 128 beside the state's, its backward pass spills registers."""
        first = 64 if scan and self.key_dim == 128 else 1 << (self.key_dim.bit_length() - 1)
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
    d, chunks, use = call.dims(), cut(call, cu_seqlens), settings_for(q, call.key_dim)
    gates = call.memory(call.chunks, call.value_heads, ROWS.value, CHUNK, dtype=torch.float32)
    inverse, weights = call.square(), call.square()
    states = call.states() if keep_states else call.memory(0)
    y = call.tokens(call.value_dim) if keep_states else call.memory(0)
    o, final_state = call.tokens(call.value_dim), call.outer_state()
    grid = (call.chunks * call.value_heads,)
    if grid[0]:
        intra_kernel[grid](
            heads(q), heads(k), heads(g), heads(beta), gates, inverse, weights, chunks, scale, call.length, d,
            L2NORM=use_qk_l2norm, FIRST=True, num_warps=use.intra_warps,
        )  # fmt: skip
    if call.segments:
        block = block_of(call.value_dim, use)
        forward_kernel[(call.lanes(block),)](
            heads(q), heads(k), heads(v), gates, inverse, weights, contiguous(initial_state), o, y, states, final_state,
            chunks, call.length, call.dims(scan=True), BV=block, KEEP=keep_states, APART=use.apart, STAGES=use.forward_stages,
            num_warps=use.forward_warps,
        )  # fmt: skip
    return Forward(o, final_state, gates, inverse, states, y)


def run_backward(
    do: Tensor,
    d_final: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    cu_seqlens: Tensor | None,
    initial_state: Tensor | None,
    gates: Tensor,
    inverse: Tensor,
    states: Tensor,
    y: Tensor,
    scale: float,
    use_qk_l2norm: bool,
) -> Backward:
    """``states`` and ``y`` are computed again where they are empty."""
    call = Call(q, v, cu_seqlens)
    d, chunks, use = call.dims(), cut(call, cu_seqlens), settings_for(q, call.key_dim)
    kept = states.numel() > 0
    if not kept:
        states, y = call.states(), call.tokens(call.value_dim)
    weights, d_states = call.square(), call.states()
    group = call.value_heads // call.heads
    key_dtype = q.dtype if group == 1 else torch.float32
    dq, dk = (call.tokens(call.key_dim, dtype=key_dtype) for _ in range(2))
    dv, d_initial = call.tokens(call.value_dim), call.outer_state()
    dg, dbeta = (call.tokens(dtype=x.dtype) for x in (g, beta))
    grid = (call.chunks * call.value_heads,)
    if grid[0]:
        intra_kernel[grid](
            heads(q), heads(k), heads(g), heads(beta), gates, inverse, weights, chunks, scale, call.length, d,
            L2NORM=use_qk_l2norm, FIRST=False, num_warps=use.intra_warps,
        )  # fmt: skip
    if call.segments:
        block = block_of(call.value_dim, use)
        lanes = call.lanes(block)
        backward_kernel[(lanes if kept else 2 * lanes,)](
            heads(q), heads(k), heads(v), heads(do), gates, inverse, weights, contiguous(initial_state),
            contiguous(d_final), y, states, dv, d_states, d_initial, chunks, lanes, call.length, call.dims(scan=True), BV=block, KEPT=kept,
            APART=use.apart, STAGES=use.backward_stages, num_warps=use.backward_warps,
        )  # fmt: skip
    if grid[0]:
        narrow = min(use.gradients_block, block_of(call.value_dim, use))
        change = call.memory(call.chunks, call.value_heads, CHUNK, dtype=torch.float32)
        query_kernel[grid](
            heads(q), heads(k), heads(do), gates, weights, y, states, dq, change, chunks, scale, call.length, d,
            BV=narrow, L2NORM=use_qk_l2norm, STAGES=use.gradients_stages, num_warps=use.gradients_warps,
        )  # fmt: skip
        key_kernel[grid](
            heads(q), heads(k), gates, weights, y, states, dv, d_states, dk, dg, dbeta, change, chunks, call.length, d,
            BV=narrow, L2NORM=use_qk_l2norm, STAGES=use.gradients_stages, num_warps=use.gradients_warps,
        )  # fmt: skip
    if group > 1:
        dq, dk = (x.unflatten(2, (call.heads, group)).sum(3).to(q.dtype) for x in (dq, dk))
    return Backward(dq, dk, dv, dg, dbeta, d_initial)


def block_of(value_dim: int, use: Settings) -> int:
    """V columns of a state tile."""
    return min(use.scan_block, max(16, triton.next_power_of_2(value_dim)))


def heads(x: Tensor) -> Heads:
    """By strides, as it lies; only a last dimension that is not contiguous (an expanded gradient, say) is copied."""
    if x.ndim == 4 and x.stride(3) != 1:
        x = x.contiguous()
    return Heads(x, *x.stride()[:3])


def contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()
