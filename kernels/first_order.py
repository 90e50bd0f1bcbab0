"""Backward passes that cannot be differentiated again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A ``Function.backward`` that refuses to be part of a graph.

    torch's ``once_differentiable`` says nothing where ``torch.autograd.grad`` is asked for a tensor that it can still
    reach by another way, such as tied embeddings: the second derivative then lacks all that passes here. Raises
    RuntimeError under ``create_graph=True``, which alone leaves gradients on in a backward pass.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *gradients: torch.Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True: second derivatives of this model are not formed here; open it in plain transformers, with "
                "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
            )
        return backward(ctx, *gradients)

    return once
