"""The launch of AdamW's kernel, as a custom operator."""

import torch
import triton
from torch import Tensor

from hybrid_ft.kernels.adamw_bf16.gpu.kernels import update_kernel
from hybrid_ft.kernels.adamw_bf16.reference import Rates
from hybrid_ft.kernels.launching import launch
from hybrid_ft.kernels.rowwise import on

BLOCK, WARPS = 2048, 8
# Numbers of one launch, whose places fit into an int32.
MOST = 2**30


def triton_update(
    weight: Tensor, low: Tensor, gradient: Tensor, first: Tensor, second: Tensor, seed: int, rates: Rates
) -> None:
    """``reference.update`` of tensors without gaps, [N] each; the random bits are of ``seed`` and a number's place."""
    update_op(weight, low, gradient, first, second, seed, list(rates))


@torch.library.custom_op("hybrid_ft::adamw_bf16", mutates_args=("weight", "low", "first", "second"))
def update_op(
    weight: Tensor, low: Tensor, gradient: Tensor, first: Tensor, second: Tensor, seed: int, rates: list[float]
) -> None:
    kept, beta1, beta2, rate, correction, eps = rates
    patterns = [x.view(torch.int16) for x in (weight, gradient, first, second)]
    with on(weight):
        for start in range(0, len(weight), MOST):
            w, g, m, v = (x[start : start + MOST] for x in patterns)
            launch(
                update_kernel, triton.cdiv(len(w), BLOCK),
                w, low[start : start + MOST], g, m, v, len(w), (seed + start) & (2**62 - 1), kept, 1 - beta1, beta2,
                1 - beta2, rate, correction, eps, BLOCK, num_warps=WARPS,
            )  # fmt: skip


@update_op.register_fake
def _(
    weight: Tensor, low: Tensor, gradient: Tensor, first: Tensor, second: Tensor, seed: int, rates: list[float]
) -> None:
    return None
