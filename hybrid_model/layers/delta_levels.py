"""Convolution and delta rule over a layout's levels, parents first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from hybrid_ft.hybrid_model.door.layout import Level, SequenceLayout
from hybrid_ft.hybrid_model.door.rows import take_rows
from hybrid_ft.hybrid_model.layers.heads import Heads
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.short_conv import short_conv

Step = Callable[..., tuple[torch.Tensor, Any, Any]]
"""(a level's parts of the inputs, its ``Level``, tail and state before it, whether they are wanted after it) to the
level's outputs [n, ...], its tail and its state."""


def over_levels(layout: SequenceLayout, inputs: tuple[torch.Tensor, ...], step: Step) -> torch.Tensor:
    """Outputs [N, ...] of a recurrence whose inputs are [N, ...] each: every level begins where
    its parents have ended."""
    sizes = [sum(level.lengths) for level in layout.levels]
    tail = state = None
    outputs = []
    for depth, (level, *parts) in enumerate(zip(layout.levels, *(x.split(sizes) for x in inputs))):
        if level.parents is not None:
            tail = None if tail is None else take_rows(tail, level.parents)
            state = None if state is None else take_rows(state, level.parents)
        o, tail, state = step(parts, level, tail, state, depth + 1 < len(layout.levels))
        outputs.append(o)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def delta_over_levels(
    qkv: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    conv_weight: torch.Tensor,
    layout: SequenceLayout,
    key_heads: int,
    key_dim: int,
) -> torch.Tensor:
    """Outputs [N, HV, V] of the tokens that lie here: of queries, keys and values side by side, qkv [N, 2 H K + HV V],
    before their convolution.

    g, beta [N, HV] float32; conv_weight [2 H K + HV V, W]. HV is a multiple of H; key head h serves HV / H consecutive
    value heads.
    """
    heads, keys = Heads(layout, key_heads), key_heads * key_dim
    widths = [keys, keys, qkv.shape[1] - 2 * keys]
    qkv, conv_weight = heads.gather_joined(qkv, widths), heads.own_joined(conv_weight, widths)
    g, beta = heads.gather(g), heads.gather(beta)
    widths = [width * heads.count // key_heads for width in widths]

    def step(
        parts: list[torch.Tensor], level: Level, tail: torch.Tensor | None, state: torch.Tensor | None, more: bool
    ) -> tuple[torch.Tensor, Any, Any]:
        x, g_level, beta_level = parts
        convolved, tail = short_conv(
            x, conv_weight, cu_seqlens=level.cu_seqlens, initial_tail=tail, output_final_tail=more
        )
        q, k, v = convolved.split(widths, dim=-1)
        o, state = gated_delta_rule(
            q.unflatten(-1, (-1, key_dim)).unsqueeze(0),
            k.unflatten(-1, (-1, key_dim)).unsqueeze(0),
            v.unflatten(-1, (g_level.shape[1], -1)).unsqueeze(0),
            g_level.unsqueeze(0),
            beta_level.unsqueeze(0),
            cu_seqlens=level.cu_seqlens,
            initial_state=state,
            output_final_state=more,
        )
        return o.squeeze(0), tail, state

    return heads.give_back(over_levels(layout, (qkv, g, beta), step))
