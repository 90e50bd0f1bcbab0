"""One call's sizes, memory, chunks and pieces.

A scan has one program per segment, value head and V tile. Fewer than the chip holds leave it idle, so segments are then
cut into pieces of whole chunks, which are scanned side by side (splits.py).
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import ROWS, Chunks, Dims, Pieces

CHUNK = 64  # tokens
# float32 in the interpreter alone, where rounding hides nothing; on a GPU it takes the torch path.
DOTS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}
# Programs of a scan that a chip takes at once: two on each of an H100's 132 multiprocessors. The same number for every
# device, so that all add up in the same order.
PROGRAMS = 264
# Chunks in the shortest piece: below it, the passes that pieces need in addition cost more than they save.
SHORTEST = 32
# Programs that pieces make of one: with two passes over each and a join, two side by side would take as long as one.
WORTH_IT = 3
# Chunk maps that are kept: of the batch at hand, its levels, and the next.
MAPS = 8


class Inputs(NamedTuple):
    """What the op was given, see op.py; backward has no g and beta (they are in the gates), and no v where the states
    were kept."""

    q: Tensor
    k: Tensor
    v: Tensor | None
    g: Tensor | None
    beta: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: Tensor | None
    scale: float
    use_qk_l2norm: bool
    correct: bool = True


class Kept(NamedTuple):
    """What backward reads, chunk by chunk: gates [NT, HV, ROWS, BT] float32; inverse [NT, HV, BT, BT], empty where
    nothing is corrected; if states are kept, else empty, states [NT, HV, V, K] and y [B, T, HV, V], in q's dtype like
    inverse; if segments are cut into pieces, else empty, starts [NP, HV, K, V] and moves [NP, HV, K, K] in float32, see
    splits.py."""

    gates: Tensor
    inverse: Tensor
    states: Tensor
    y: Tensor
    starts: Tensor
    moves: Tensor


class Forward(NamedTuple):
    """o [B, T, HV, V] in v's dtype; final_state [S, HV, K, V] float32."""

    o: Tensor
    final_state: Tensor
    kept: Kept


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

    @cached_property
    def piece(self) -> int:
        """Chunks in a piece, 0 where segments stay whole. From the sizes alone: the device is not waited for."""
        programs = self.lanes(self.segments, 64)
        if not programs or PROGRAMS // programs < WORTH_IT:
            return 0
        longest = -(-self.length // CHUNK)  # a segment's chunks, at most
        chunks = max(SHORTEST, -(-self.chunks // (PROGRAMS // programs * self.segments)))
        return chunks if chunks < longest else 0

    def cut_backward(self, halves: int) -> bool:
        """Whether backward takes the pieces too; it has ``halves`` programs for each of forward's."""
        return bool(self.piece) and PROGRAMS // (halves * self.lanes(self.segments, 64)) >= WORTH_IT

    @property
    def pieces(self) -> int:
        """At least as many as there are: a segment has one, and one more for every ``piece`` chunks."""
        return self.segments + self.chunks // self.piece if self.piece else 0

    def pieces_of(self, chunks: Chunks) -> Pieces:
        return _kept(chunks.cu_seqlens, (self.piece, self.pieces), lambda: cut_pieces(self, chunks))

    def dims(self, halves: bool = False, columns: int | None = None) -> Dims:
        """``halves``: 128 is 64 + 64. ``columns`` in place of V."""
        return _dims(self.heads, self.value_heads, self.key_dim, columns or self.value_dim, self.like.dtype, halves)

    def memory(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=dtype or self.like.dtype, device=self.like.device)

    def square(self) -> Tensor:
        return self.memory(self.chunks, self.value_heads, CHUNK, CHUNK)

    def states(self) -> Tensor:
        return self.memory(self.chunks, self.value_heads, self.value_dim, self.key_dim)

    def tokens(self, *last: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.memory(self.batch, self.length, self.value_heads, *last, dtype=dtype)

    def outer_states(self, count: int) -> Tensor:
        return self.memory(count, self.value_heads, self.key_dim, self.value_dim, dtype=torch.float32)

    def lanes(self, segments: int, block: int, columns: int | None = None) -> int:
        """Programs of a scan over ``segments`` segments or pieces."""
        return segments * self.value_heads * -(-(columns or self.value_dim) // block)

    def alone(self, programs: int) -> bool:
        """Whether each of a scan's programs has a multiprocessor to itself."""
        return programs <= PROGRAMS // 2

    def forward_memory(self, keep_states: bool, correct: bool) -> Forward:
        gates = self.memory(self.chunks, self.value_heads, ROWS.value, CHUNK, dtype=torch.float32)
        states = self.states() if keep_states else self.memory(0)
        y = self.tokens(self.value_dim) if keep_states else self.memory(0)
        starts = self.outer_states(self.pieces)
        moves = self.memory(self.pieces, self.value_heads, self.key_dim, self.key_dim, dtype=torch.float32)
        inverse = self.square() if correct else self.memory(0)
        kept = Kept(gates, inverse, states, y, starts, moves)
        return Forward(self.tokens(self.value_dim), self.outer_states(self.segments), kept)

    def backward_memory(self) -> Backward:
        dq, dk = (self.memory(self.batch, self.length, self.heads, self.key_dim) for _ in range(2))
        dg, dbeta = (self.tokens(dtype=torch.float32) for _ in range(2))
        return Backward(dq, dk, self.tokens(self.value_dim), dg, dbeta, self.outer_states(self.segments))


# All that a kernel has compiled in is made once: see launching.compiled_in.
@cache
def _dims(heads: int, value_heads: int, key_dim: int, value_dim: int, dtype: torch.dtype, halves: bool) -> Dims:
    first = 64 if halves and key_dim == 128 else 1 << (key_dim.bit_length() - 1)
    rest = key_dim - first
    second = max(16, triton.next_power_of_2(rest)) if rest else 0
    sizes = (heads, value_heads, key_dim, value_dim, first, second, CHUNK)
    return Dims(*(tl.constexpr(x) for x in (*sizes, DOTS[dtype])))


def cut(call: Call, cu_seqlens: Tensor | None) -> Chunks:
    """A dense batch is segments of one length."""
    device = call.like.device
    if cu_seqlens is None:
        cu_seqlens = torch.arange(call.batch + 1, dtype=torch.int32, device=device) * call.length
        return _chunks(cu_seqlens, call)
    edges = cu_seqlens
    return _kept(edges, (call.chunks, device), lambda: _chunks(edges.to(device, torch.int32), call))


_maps: OrderedDict[tuple[Any, ...], tuple[Tensor, Any]] = OrderedDict()


def _kept(edges: Tensor, sizes: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What ``make`` gives for these edges, made once for all layers, and for backward. As long as it is kept so are the
    edges, so that no other tensor can lie where they do; one that is written to gets another version. What is captured
    into a CUDA graph keeps its memory to itself."""
    if edges.is_inference() or (_on_cuda(edges) and torch.cuda.is_current_stream_capturing()):
        return make()
    stream = torch.cuda.current_stream(edges.device).cuda_stream if _on_cuda(edges) else 0
    key = (
        edges.data_ptr(),
        edges._version,
        edges.dtype,
        tuple(edges.shape),
        edges.stride(),
        edges.device,
        stream,
        *sizes,
    )
    if key not in _maps:
        _maps[key] = edges, make()
        if len(_maps) > MAPS:
            _maps.popitem(last=False)
    return _maps[key][1]


def _on_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda"


def cut_pieces(call: Call, chunks: Chunks) -> Pieces:
    """An empty segment is one empty piece. Pieces that are too many are empty, behind the last."""
    counts = (chunks.first_chunk.diff() + (call.piece - 1)) // call.piece
    first, owner = _number(counts.clamp(min=1), call.pieces)
    at = torch.arange(call.pieces, dtype=torch.int32, device=owner.device) - first[owner]
    start = chunks.cu_seqlens[owner] + at * (call.piece * CHUNK)
    end = chunks.cu_seqlens[-1:]
    edges = torch.cat([torch.where(owner < 0, end, start), end])
    return Pieces(first, owner, _chunks(edges, call))


def _chunks(edges: Tensor, call: Call) -> Chunks:
    lengths = edges.diff()
    first, owner = _number((lengths + (CHUNK - 1)) // CHUNK, call.chunks)
    order = lengths.argsort(descending=True, stable=True).to(torch.int32)
    return Chunks(edges, first, owner, order)


def _number(counts: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Where ``counts`` [S] parts of each of S wholes are numbered in a row: the first number of each [S+1], and whose
    each of ``number`` parts is, -1 where there are not as many."""
    first = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=first[1:])
    numbers = torch.arange(number, dtype=torch.int32, device=counts.device)
    owner = torch.searchsorted(first[1:], numbers, right=True, out_int32=True)
    return first, torch.where(owner < len(counts), owner, -1)
