"""Gradient checkpointing whose kept inputs of layers wait in the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.autograd.graph import save_on_cpu
from transformers import PreTrainedModel


def offload_inputs(model: nn.Module) -> None:
    """Whenever checkpointing is turned on, what it keeps of a layer goes to pinned host memory until backward.

    model   transformers', or PEFT's around one. Numbers are copied as they are; on a GPU by its own queue, so that a copy
            is done before its source is given away. transformers has the same from 5.23 on, called ``offload``.
    """
    inner: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    turn = inner._set_gradient_checkpointing

    def turn_and_offload(
        *args: Any, gradient_checkpointing_func: Callable[..., Any] | None = None, **rest: Any
    ) -> None:
        if gradient_checkpointing_func is None:
            turn(*args, **rest)
            return
        checkpoint = gradient_checkpointing_func

        def offloading(*arguments: Any, **named: Any) -> Any:
            # inside, checkpoint's own hooks stand before these: only what it keeps goes through them
            with save_on_cpu(pin_memory=True):
                return checkpoint(*arguments, **named)

        turn(*args, gradient_checkpointing_func=offloading, **rest)

    inner._set_gradient_checkpointing = turn_and_offload
