"""Mamba's selective scan over packed segments, on torch operations.

Tokens are put in order of their places in their segments, so that one step takes a token of every segment that has one.
States are kept in forward at a few places alone; backward computes those between them again.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import FLOATS, check_cu_seqlens, readable

_NUMBERS = 2**22
"""Of states between two that are kept, about: 16 MB of float32."""


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """
    x, dt [N, D], segments end to end, dt positive; A [D, M], negative; B, C [N, M]; skip [D]; cu_seqlens int32 or int64
    [S+1], one segment if None. Every segment begins with a state of zeros. Returns y [N, D] in x's dtype; what is in 16
    bits is computed in float32. Differentiable in all six.

    The same torch operations on every device, about five a step of the longest segment: meant for a CPU. Raises
    ValueError, one line, for shapes, dtypes or segment edges that do not fit. See reference.py for the equations.
    """
    if x.ndim != 2 or A.ndim != 2:
        raise ValueError(f"x, A: got {tuple(x.shape)} and {tuple(A.shape)}; they must be [N, D] and [D, M]")
    (N, D), M = x.shape, A.shape[1]
    shapes = {"x": (N, D), "dt": (N, D), "A": (D, M), "B": (N, M), "C": (N, M), "skip": (D,)}
    for (name, shape), given in zip(shapes.items(), (x, dt, A, B, C, skip)):
        if tuple(given.shape) != shape or given.dtype not in FLOATS:
            raise ValueError(f"{name}: got {tuple(given.shape)} {given.dtype}; it must be float with shape {shape}")
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, 1, N, readable(cu_seqlens))
    return _scan(x, dt, A, B, C, skip, cu_seqlens)


@torch.compiler.disable  # the steps go by the segments' lengths, which are on the host
def _scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    lengths = [len(x)] if cu_seqlens is None else cu_seqlens.diff().tolist()
    order, counts = _by_place(lengths, x.device)
    x_t, dt_t, B_t, C_t = (tensor.to(dtype).index_select(0, order) for tensor in (x, dt, B, C))
    y = _SelectiveScan.apply(x_t, dt_t, A.to(dtype), B_t, C_t, counts)
    back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return (y.index_select(0, back) + skip.to(dtype) * x.to(dtype)).to(x.dtype)


def _by_place(lengths: list[int], device: torch.device) -> tuple[Tensor, list[int]]:
    """Tokens by their place in their segments, longest segments first; and how many there are at each place."""
    sizes = torch.tensor(lengths)
    by_length = sizes.argsort(descending=True, stable=True)
    places = torch.cat([torch.arange(n) for n in lengths])
    rank = torch.empty_like(by_length).scatter_(0, by_length, torch.arange(len(lengths)))
    key = places * len(lengths) + rank.repeat_interleave(sizes)
    return key.argsort().to(device), torch.bincount(places).tolist()


class _SelectiveScan(torch.autograd.Function):
    """On tokens that ``_by_place`` has ordered; ``counts[t]`` of them are at place t."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, counts: list[int]) -> Tensor:
        state = x.new_zeros(max(counts, default=0), *A.shape)
        y, kept = torch.empty_like(x), []
        with torch.inference_mode():
            for chunk in _chunks(counts, A.numel()):
                kept.append(state.clone())
                states = _states(x, dt, A, B, chunk, state)
                rows = chunk.rows
                y[rows] = torch.matmul(states, C[rows].unsqueeze(-1)).squeeze(-1)
        ctx.save_for_backward(x, dt, A, B, C)
        ctx.counts, ctx.kept = counts, kept
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C = ctx.saved_tensors
        dx, ddt, dA, dB, dC = (torch.empty_like(tensor) for tensor in (x, dt, A, B, C))
        dA.zero_()
        with torch.inference_mode():
            carried = x.new_zeros(max(ctx.counts, default=0), *A.shape)
            chunks = list(_chunks(ctx.counts, A.numel()))
            for chunk, start in zip(reversed(chunks), reversed(ctx.kept)):
                rows = chunk.rows
                states = _states(x, dt, A, B, chunk, start.clone())
                dC[rows] = torch.matmul(dy[rows].unsqueeze(1), states).squeeze(1)
                dstates = dy[rows].unsqueeze(-1) * C[rows].unsqueeze(1)
                decay = torch.exp(dt[rows].unsqueeze(-1) * A)
                for at, count in reversed(chunk.steps):
                    here = slice(at, at + count)
                    dstates[here] += carried[:count]
                    torch.mul(dstates[here], decay[here], out=carried[:count])
                # a state less what was written to it is the state before it, decayed
                written = (dt[rows] * x[rows]).unsqueeze(-1)
                of_log = dstates * (states - written * B[rows].unsqueeze(1))
                of_written = torch.matmul(dstates, B[rows].unsqueeze(-1)).squeeze(-1)
                dB[rows] = torch.matmul(written.transpose(1, 2), dstates).squeeze(1)
                ddt[rows] = of_written * x[rows] + (of_log * A).sum(-1)
                dx[rows] = of_written * dt[rows]
                dA += (of_log * dt[rows].unsqueeze(-1)).sum(0)
        return dx, ddt, dA, dB, dC, None


class _Chunk:
    """Steps whose states are held together: their tokens' ``rows``, and where each step's are among these."""

    def __init__(self, start: int) -> None:
        self.start, self.size = start, 0
        self.steps: list[tuple[int, int]] = []

    def add(self, count: int) -> None:
        self.steps.append((self.size, count))
        self.size += count

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.size)


def _chunks(counts: list[int], numbers: int) -> Iterator[_Chunk]:
    """``numbers``: of one token's state."""
    chunk = _Chunk(0)
    for count in counts:
        if chunk.steps and (chunk.size + count) * numbers > _NUMBERS:
            yield chunk
            chunk = _Chunk(chunk.start + chunk.size)
        chunk.add(count)
    if chunk.steps:
        yield chunk


def _states(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, chunk: _Chunk, state: Tensor) -> Tensor:
    """States [rows, D, M] after each token of the chunk; ``state`` is taken on to the chunk's end, in place."""
    rows = chunk.rows
    decay = torch.exp(dt[rows].unsqueeze(-1) * A)
    states = (dt[rows] * x[rows]).unsqueeze(-1) * B[rows].unsqueeze(1)
    for at, count in chunk.steps:
        here = states[at : at + count]
        here.addcmul_(state[:count], decay[at : at + count])
        state[:count] = here
    return states
