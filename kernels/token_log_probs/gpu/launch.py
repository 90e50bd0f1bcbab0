"""Token log-probabilities on a GPU, as custom operators.

Token log-probabilities on a GPU, as custom operators, opaque to torch.compile: the library's matrix products over
chunks of tokens by the whole vocabulary, and between them one pass of a Triton kernel over the chunk's logits.

Logits are rounded to the inputs' dtype, as those of a language model's head are. weight's gradient is added up over the
chunks in float32: in bfloat16 each chunk's part would be rounded against the sum of those before it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.operators import operator, register_autograd, register_fake
from hybrid_ft.kernels.rowwise import check_gpu, on
from hybrid_ft.kernels.token_log_probs.gpu.kernels import backward_kernel, forward_kernel

# Rows of logits that exist at once: 0.8 GB of bfloat16 for 100,352 words. Fewer would add to weight's gradient, 1.5 GB,
# more often.
ROWS = 4096
FORWARD_BLOCK, BACKWARD_BLOCK, WARPS = 4096, 4096, 8


def triton_token_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The op on checked shapes."""
    check_gpu(hidden=hidden, weight=weight)
    log_probs, entropy, is_top, _, _ = forward_op(hidden, weight, targets)
    return log_probs, entropy, is_top


@operator("token_log_probs")
def forward_op(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies, whether the target is a likeliest word, and for backward each row's highest logit
    and the sum of the exponentials below it."""
    target_logits, highest, total, moment = hidden.new_empty(4, len(hidden), dtype=torch.float32)
    hidden, weight, targets = _prepared(hidden, weight, targets)
    with on(hidden):
        for rows, logits in _chunks(hidden, weight):
            launch(
                forward_kernel, len(logits),
                logits, targets[rows], target_logits[rows], highest[rows], total[rows], moment[rows], len(weight),
                FORWARD_BLOCK, num_warps=WARPS,
            )  # fmt: skip
    log_total = total.log()
    return (
        target_logits - highest - log_total,
        log_total - moment / total,
        target_logits == highest,
        # an operator's results may not share memory
        highest.clone(),
        total.clone(),
    )


@register_fake(forward_op)
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    numbers = [hidden.new_empty(len(hidden), dtype=torch.float32) for _ in range(4)]
    return numbers[0], numbers[1], hidden.new_empty(len(hidden), dtype=torch.bool), numbers[2], numbers[3]


@operator("token_log_probs_backward")
def backward_op(
    dlp: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, highest: Tensor, total: Tensor, of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dhidden and dweight, each empty where it is not asked for."""
    h, w, targets = _prepared(hidden, weight, targets)
    dlp = dlp.contiguous()
    dh = torch.empty_like(h) if of_hidden else None
    dw = torch.zeros_like(w, dtype=torch.float32) if of_weight else None
    with on(h):
        for rows, logits in _chunks(h, w):
            launch(
                backward_kernel, len(logits) * triton.cdiv(len(w), BACKWARD_BLOCK),
                logits, targets[rows], dlp[rows], highest[rows], total[rows], len(w), BACKWARD_BLOCK, num_warps=WARPS,
            )  # fmt: skip
            if dh is not None:
                torch.mm(logits, w, out=dh[rows])
            if dw is not None:
                _add_product(dw, logits.T, h[rows])
    return (
        hidden.new_empty(0) if dh is None else dh.to(hidden.dtype),
        weight.new_empty(0) if dw is None else dw.to(weight.dtype),
    )


@register_fake(backward_op)
def _(
    dlp: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor, highest: Tensor, total: Tensor, of_hidden: bool,
    of_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (
        hidden.new_empty(hidden.shape if of_hidden else 0),
        weight.new_empty(weight.shape if of_weight else 0),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[3:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dlp: Tensor, *_: Any) -> tuple[Tensor | None, Tensor | None, None]:
    of_hidden, of_weight = ctx.needs_input_grad[:2]
    dh, dw = backward_op(dlp, *ctx.saved_tensors, of_hidden, of_weight)
    return dh if of_hidden else None, dw if of_weight else None, None


register_autograd(forward_op, _backward, _setup)


def _prepared(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both factors in the wider dtype of the two."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    return hidden.to(dtype), weight.to(dtype), targets.contiguous()


def _chunks(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of tokens and their logits [rows, V], always in the same memory."""
    buffer = hidden.new_empty(min(ROWS, len(hidden)), len(weight))
    for start in range(0, len(hidden), ROWS):
        rows = slice(start, min(start + ROWS, len(hidden)))
        # written to a given place, products are out of autocast's reach
        yield rows, torch.mm(hidden[rows], weight.T, out=buffer[: rows.stop - start])


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a b to a float32 total; on a GPU halves are not rounded on the way."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
