"""Selective gradient checkpointing.

What mixes tokens is kept, the rest computed again; or whole layers are kept; or what is kept waits in the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hybrid_ft.hybrid_model.layers.watched import MARKING

KEPT = frozenset(
    {
        "hybrid_ft::gated_delta_rule",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
        "flash_attn_3::fwd",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    }
)
"""Operators whose outputs are kept. They are dear to compute for what they weigh; on a CPU the delta rule is not an operator
and is computed again."""


def selective_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """``context_fn`` of ``torch.utils.checkpoint``: the contexts of a layer's forward and of its second one in backward."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def leave_out(model: nn.Module, numbers: Collection[int]) -> None:
    """Layers that keep their activations whenever checkpointing is turned on, however often that is.

    model   transformers', or PEFT's around one; transformers turns checkpointing on at the start of training
    """
    if not numbers:
        return
    inner: Any = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    turn = inner._set_gradient_checkpointing

    def turn_others(*args: Any, **kwargs: Any) -> None:
        turn(*args, **kwargs)
        for number in numbers:
            layers[number].gradient_checkpointing = False

    inner._set_gradient_checkpointing = turn_others


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


def mark_no_inputs(model: nn.Module) -> None:
    """Take away the hooks that give what frozen embeddings return a gradient, as transformers and PEFT set them.

    Reentrant checkpointing alone needs it. Without them backward ends at the first layer that is trained: no gradient of
    its input, nothing of the layers below it, and the embeddings [N, D] need not stay for theirs.
    """
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__name__", "") in MARKING:
                del module._forward_hooks[key]
