"""Log-probabilities of targets without the logits [N, V].

Log-probabilities of targets without the logits [N, V]. Here on torch operations, tile by tile, each tile small enough
for a core's cache; gpu/launch.py has the path of a GPU, chunk by chunk.

    forward    per tile of tokens, over tiles of the vocabulary: a running maximum m, s = sum exp(z - m), and
               x = sum exp(z - m) (z - m); at the end  log p = z_target - m - log s,  entropy = log s - x / s
    backward   the tile again, e = exp(z - m); with dlp the gradient of log p and p = e / s,
               dhidden = dlp (W_target - p W),  dW_v = -sum_n dlp_n p_nv h_n,  dW_target += dlp h

dlp and 1 / s scale rows of [N, D], never a tile: it is passed over by the matrix products, a difference and an exp.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.first_order import first_order
from hybrid_ft.kernels.gated_delta_rule.checks import check_floats

# 4 MB of float32: about a core's share of the caches, and wide enough that the matrix products run at their full rate
BT, BV = 512, 2048


def token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """
    hidden [N, D], weight [V, D], targets int64 [N] in [0, V). Returns float32 [N] (float64 for float64 inputs): the
    targets' log-probabilities, differentiable in hidden and weight, and the entropies, which are not; and bool [N],
    whether no token is likelier than the target. The tensors' device alone decides the path. On a CPU half precision is
    multiplied in float32; extra memory is a tile, and the gradient of weight. On a GPU, for 32 and 16 bits, logits are
    rounded to the inputs' dtype (the wider of two); extra memory is 4,096 rows of them and, in backward, the gradient
    of weight in float32.

    Raises ValueError, one line, for shapes or dtypes that do not fit and, on a CPU, for a target outside the
    vocabulary; on a GPU its log-probability is NaN, for the device is not waited for."""
    check_floats(hidden=hidden, weight=weight)
    if targets.dtype != torch.int64:
        raise ValueError(f"targets: got {targets.dtype}; they must be int64")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {tuple(targets.shape)} must be [N], with hidden {tuple(hidden.shape)}")
    if hidden.is_cuda:
        # Triton is there wherever torch supports CUDA, and nowhere else.
        from hybrid_ft.kernels.token_log_probs.gpu.launch import triton_token_log_probs

        return triton_token_log_probs(hidden, weight, targets)
    if len(targets) and not (0 <= int(targets.min()) and int(targets.max()) < len(weight)):
        raise ValueError(
            f"targets: got {int(targets.min())} to {int(targets.max())}; they must be words of weight, 0 to {len(weight) - 1}"
        )
    return _TokenLogProbs.apply(hidden, weight, targets)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        h = hidden.to(dtype)
        target_logits = h.new_empty(len(h))
        highest = torch.full_like(target_logits, -torch.inf)
        total, moment = h.new_zeros(2, len(h))
        buffer, powers = h.new_empty(2, min(BT, len(h)) * min(BV, len(weight)))
        for tokens in _tiles(len(h), BT):
            m, s, x = highest[tokens], total[tokens], moment[tokens]
            for words in _tiles(len(weight), BV):
                z = _matmul(h[tokens], weight[words].to(dtype).T, buffer)
                place = targets[tokens] - words.start
                here = ((place >= 0) & (place < z.shape[1])).nonzero().squeeze(-1)
                target_logits[tokens][here] = z[here, place[here]]
                new = torch.maximum(m, z.amax(-1))
                # what was summed against the old maximum, against the new one; nothing at the first tile, where
                # m is -inf
                shift = (m - new).nan_to_num_(neginf=0.0)
                shrink = (m - new).exp_()
                x.add_(s * shift).mul_(shrink)
                s.mul_(shrink)
                z.sub_(new[:, None])
                e = torch.exp(z, out=powers[: z.numel()].view_as(z))
                s.add_(e.sum(-1))
                x.add_(torch.linalg.vecdot(e, z))
                m.copy_(new)
        ctx.save_for_backward(hidden, weight, targets, highest, total)
        is_top = target_logits == highest
        entropy = total.log() - moment / total
        ctx.mark_non_differentiable(entropy, is_top)
        return target_logits - highest - total.log(), entropy, is_top

    @staticmethod
    @first_order
    def backward(ctx: Any, dlp: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, highest, total = ctx.saved_tensors
        wants_h, wants_w, _ = ctx.needs_input_grad
        dtype = highest.dtype
        h = hidden.to(dtype)
        scaled = h * dlp[:, None]
        shares = scaled / total[:, None]
        dh = torch.zeros_like(h)
        dw = torch.zeros_like(weight, dtype=dtype) if wants_w else None
        buffer = h.new_empty(min(BT, len(h)) * min(BV, len(weight)))
        for tokens in _tiles(len(h), BT):
            for words in _tiles(len(weight), BV):
                w = weight[words].to(dtype)
                e = _matmul(h[tokens], w.T, buffer).sub_(highest[tokens, None]).exp_()
                if wants_h:
                    dh[tokens].addmm_(e, w)
                if dw is not None:
                    dw[words].addmm_(e.T, shares[tokens], alpha=-1)
        dh = weight[targets].to(dtype).sub_(dh.div_(total[:, None])).mul_(dlp[:, None])
        if dw is not None:
            dw.index_add_(0, targets, scaled)
        return dh.to(hidden.dtype) if wants_h else None, None if dw is None else dw.to(weight.dtype), None


def _tiles(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _matmul(a: Tensor, b: Tensor, buffer: Tensor) -> Tensor:
    rows, columns = a.shape[0], b.shape[1]
    return torch.mm(a, b, out=buffer[: rows * columns].view(rows, columns))
