"""Causal depthwise convolution, with or without SiLU, over packed segments.

On torch operations: shifted multiply-adds over all rows, a cache-sized run of rows at a time, then the first W-1 rows
of every segment again from a window of their own, so that nothing of a neighbour reaches them. Backward keeps only x
and computes the pre-activation again."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import FLOATS, check_cu_seqlens, readable


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
    initial_tail: Tensor | None = None,
    output_final_tail: bool = False,
    activate: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """
    x [N, D], segments end to end; weight [D, W]; bias [D] or None; cu_seqlens int32 or int64 [S+1], one segment if
    None. initial_tail, final_tail [S, W-1, D]: the last W-1 raw inputs before and after each segment, oldest first,
    zeros where there were none. Returns y [N, D] and the final tail or None, both in x's dtype; bfloat16 and float16
    are computed in float32. Differentiable in x, weight, bias and initial_tail, through both outputs. ``activate``:
    whether SiLU follows. The tensors' device alone decides the path: on a GPU Triton kernels, for W up to 7, any
    strides, and without waiting for the device, so that a cu_seqlens that lies there is not read back and not checked.
    Raises ValueError, one line, for shapes, dtypes or segment edges that do not fit. See reference.py.
    """
    _check(x, weight, ("N", "D"))
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, 1, len(x), readable(cu_seqlens))
    if bias is not None and (tuple(bias.shape) != x.shape[1:] or bias.dtype not in FLOATS):
        got = f"{tuple(bias.shape)} {bias.dtype}"
        raise ValueError(f"bias: got {got}; it must be float with shape {tuple(x.shape[1:])}")
    segments, width = 1 if cu_seqlens is None else len(cu_seqlens) - 1, weight.shape[1]
    shape = (segments, width - 1, x.shape[1])
    if initial_tail is not None and (tuple(initial_tail.shape) != shape or initial_tail.dtype not in FLOATS):
        got = f"{tuple(initial_tail.shape)} {initial_tail.dtype}"
        raise ValueError(f"initial_tail: got {got}; it must be float with shape {shape}")
    if x.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv

        return triton_short_conv(x, weight, bias, cu_seqlens, initial_tail, output_final_tail, activate)
    if initial_tail is None:
        initial_tail = x.new_zeros(shape)
    return _short_conv(x, weight, bias, cu_seqlens, initial_tail, output_final_tail, activate)


@torch.compiler.disable  # inference mode's tensors fit no graph
def _short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cu_seqlens: Tensor | None,
    initial_tail: Tensor,
    output_final_tail: bool,
    activate: bool,
) -> tuple[Tensor, Tensor | None]:
    if cu_seqlens is None:
        cu_seqlens = torch.tensor([0, len(x)])
    edges = cu_seqlens.to(x.device, torch.int64)
    y = _ShortConv.apply(x, weight, bias, initial_tail.to(_compute_dtype(x)), edges, activate)
    return y, _final_tail(x, initial_tail.to(x.dtype), edges) if output_final_tail else None


@torch.no_grad()
def short_conv_step(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """
    One token per row: x [B, D], tail [B, W-1, D], weight [D, W]. Returns y [B, D] and the new tail, the old one left
    as it is, both in x's dtype. No gradients. The tensors' device alone decides the path: on a GPU one Triton kernel,
    for 32 and 16 bits. Raises ValueError, one line, for shapes or dtypes that do not fit.
    """
    check_step(x, tail, weight)
    if x.is_cuda:
        from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv_step

        return triton_short_conv_step(x, tail, weight)
    dtype = _compute_dtype(x)
    window = torch.cat([tail.to(x.dtype), x[:, None]], dim=1)
    pre = (window.to(dtype) * weight.to(dtype).T).sum(1)
    return F.silu(pre).to(x.dtype), window[:, 1:]


def check_step(x: Tensor, tail: Tensor, weight: Tensor) -> None:
    _check(x, weight, ("B", "D"))
    shape = (len(x), weight.shape[1] - 1, x.shape[1])
    if tuple(tail.shape) != shape or tail.dtype not in FLOATS:
        raise ValueError(f"tail: got {tuple(tail.shape)} {tail.dtype}; it must be float with shape {shape}")


def _check(x: Tensor, weight: Tensor, names: tuple[str, str]) -> None:
    if x.ndim != 2 or x.dtype not in FLOATS:
        raise ValueError(f"x: got {tuple(x.shape)} {x.dtype}; it must be float with shape [{', '.join(names)}]")
    if weight.ndim != 2 or weight.shape[0] != x.shape[1] or not weight.shape[1] or weight.dtype not in FLOATS:
        got = f"{tuple(weight.shape)} {weight.dtype}"
        raise ValueError(f"weight: got {got}; it must be float with shape [D, W], D = {x.shape[1]} and W at least 1")


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _final_tail(x: Tensor, initial_tail: Tensor, edges: Tensor) -> Tensor:
    """The last W-1 rows of [tail, segment]; autograd differentiates this gather."""
    keep = initial_tail.shape[1]
    rows = edges[1:, None] - keep + torch.arange(keep, device=x.device)
    ahead = edges[:-1, None] - rows
    old = initial_tail.gather(1, (keep - ahead).clamp(0, max(keep - 1, 0))[..., None].expand_as(initial_tail))
    if not len(x):
        return old
    own = ahead <= 0
    return torch.where(own[..., None], x[torch.where(own, rows, 0)], old)


class _Heads:
    """The first W-1 rows of each segment: where they are, and the window of raw inputs that they see."""

    def __init__(self, x: Tensor, tail: Tensor, edges: Tensor) -> None:
        self.count = tail.shape[1]
        rows = edges[:-1, None] + torch.arange(self.count, device=x.device)
        self.own = rows < edges[1:, None]
        self.rows = rows[self.own]
        first = torch.zeros_like(tail)
        first[self.own] = x[self.rows].to(tail.dtype)
        self.window = torch.cat([tail, first], dim=1)

    def convolve(self, taps: Tensor, bias: Tensor | None) -> Tensor:
        """Pre-activations [rows, D]."""
        pre = torch.zeros_like(self.window[:, : self.count])
        if bias is not None:
            pre += bias
        for w, tap in enumerate(taps):
            pre.addcmul_(self.window[:, w : w + self.count], tap)
        return pre[self.own]

    def differentiate(self, dpre: Tensor, taps: Tensor, dtaps: Tensor) -> Tensor:
        """From the gradient of the pre-activations to that of the window; fills ``dtaps``."""
        padded = torch.zeros_like(self.window[:, : self.count])
        padded[self.own] = dpre
        dwindow = torch.zeros_like(self.window)
        for w, tap in enumerate(taps):
            seen = slice(w, w + self.count)
            dwindow[:, seen].addcmul_(padded, tap)
            torch.sum(self.window[:, seen] * padded, (0, 1), out=dtaps[w])
        return dwindow


def _runs(x: Tensor) -> list[tuple[int, int]]:
    """Runs of rows: on a CPU such that what a run needs stays in a core's cache, elsewhere one."""
    rows = max(16, 2**16 // max(x.shape[1], 1)) if x.device.type == "cpu" else max(len(x), 1)
    return [(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]


def _convolve(x: Tensor, taps: tuple[Tensor, ...], bias: Tensor | None, start: int, stop: int, out: Tensor) -> Tensor:
    """Pre-activations of rows start to stop, as if x [N, D] were one segment without a tail; taps W of [D]."""
    if bias is None:
        torch.mul(x[start:stop], taps[-1], out=out)
    else:
        torch.addcmul(bias, x[start:stop], taps[-1], out=out)
    for back, tap in enumerate(taps[-2::-1], start=1):
        first = max(start, back)
        if first < stop:
            out[first - start :].addcmul_(x[first - back : stop - back], tap)
    return out


class _ShortConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, tail: Tensor, edges: Tensor, activate: bool
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, tail, edges)
        ctx.activate = activate
        y = torch.empty(x.shape, dtype=tail.dtype, device=x.device)
        with torch.inference_mode():
            taps, wide = weight.to(tail.dtype).T.contiguous(), x.to(tail.dtype)
            heads, shift = _Heads(wide, tail, edges), None if bias is None else bias.to(tail.dtype)
            for start, stop in _runs(x):
                run = _convolve(wide, taps.unbind(), shift, start, stop, y[start:stop])
                if activate:
                    F.silu(run, inplace=True)
            first = heads.convolve(taps, shift)
            y[heads.rows] = F.silu(first) if activate else first
        return y.to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, tail, edges = ctx.saved_tensors
        dx = torch.empty(x.shape, dtype=tail.dtype, device=x.device)
        dtail, dtaps = torch.empty_like(tail), tail.new_empty(weight.shape[::-1])
        dbias = None if bias is None else tail.new_empty(bias.shape)
        with torch.inference_mode():
            taps, wide = weight.to(tail.dtype).T.contiguous(), x.to(tail.dtype)
            heads = _Heads(wide, tail, edges)
            shift = None if bias is None else bias.to(tail.dtype)
            dpre = dy[heads.rows].to(tail.dtype)
            if ctx.activate:
                dpre = torch.ops.aten.silu_backward(dpre, heads.convolve(taps, shift))
            dwindow = heads.differentiate(dpre, taps, dtaps)
            if dbias is not None:
                torch.sum(dpre, 0, out=dbias)
            _differentiate_runs(wide, taps.unbind(), shift, dy, heads.rows, dx, dtaps.unbind(), dbias, ctx.activate)
            dx[heads.rows] += dwindow[:, heads.count :][heads.own]
            dtail.copy_(dwindow[:, : heads.count])
        dbias = None if dbias is None else dbias.to(bias.dtype)
        return dx.to(x.dtype), dtaps.T.to(weight.dtype), dbias, dtail, None, None


def _differentiate_runs(
    x: Tensor,
    taps: tuple[Tensor, ...],
    bias: Tensor | None,
    dy: Tensor,
    heads: Tensor,
    dx: Tensor,
    dtaps: tuple[Tensor, ...],
    dbias: Tensor | None,
    activate: bool,
) -> None:
    """Fills ``dx`` and adds to ``dtaps`` and ``dbias``, without what comes through the outputs
    of the rows ``heads``."""
    runs, ahead = _runs(x), len(taps) - 1
    buffers = x.new_empty(3, max((stop - start for start, stop in runs), default=0) + ahead, x.shape[1])
    bounds = torch.tensor([(start, min(stop + ahead, len(x))) for start, stop in runs], device=x.device).view(-1, 2)
    for (start, stop), (first_head, last_head) in zip(runs, torch.searchsorted(heads, bounds).tolist()):
        # A row's input reaches W-1 outputs further on.
        end, n = min(stop + ahead, len(x)), stop - start
        pre, dpre, product = buffers[:, : end - start].unbind()
        if activate:
            _convolve(x, taps, bias, start, end, pre)
            torch.ops.aten.silu_backward.grad_input(dy[start:end].to(x.dtype), pre, grad_input=dpre)
        else:
            dpre.copy_(dy[start:end])
        if first_head < last_head:
            dpre[heads[first_head:last_head] - start] = 0

        if dbias is not None:
            dbias.add_(dpre[:n].sum(0))
        torch.mul(dpre[:n], taps[-1], out=dx[start:stop])
        dtaps[-1].add_(torch.mul(dpre[:n], x[start:stop], out=product[:n]).sum(0))
        for back, tap, dtap in zip(range(1, len(taps)), taps[-2::-1], dtaps[-2::-1]):
            later = dpre[back : n + back]
            dx[start : start + len(later)].addcmul_(later, tap)
            first = max(start, back)
            if first < stop:
                seen = x[first - back : stop - back]
                dtap.add_(torch.mul(dpre[first - start : n], seen, out=product[: stop - first]).sum(0))
