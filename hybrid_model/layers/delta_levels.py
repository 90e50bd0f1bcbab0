"""Convolution and delta rule over a layout's levels, parents first."""

from __future__ import annotations

import torch

from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.door.rows import take_rows
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.short_conv import short_conv


def delta_over_levels(
    qkv: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    conv_weight: torch.Tensor,
    layout: SequenceLayout,
    key_heads: int,
    key_dim: int,
) -> torch.Tensor:
    """Outputs [N, HV, V] of queries, keys and values side by side, qkv [N, 2 H K + HV V], before their convolution.

    g, beta [N, HV] float32; conv_weight [2 H K + HV V, W]. HV is a multiple of H; key head h serves HV / H consecutive
    value heads.
    """
    HV, keys = g.shape[1], key_heads * key_dim
    widths = [keys, keys, qkv.shape[1] - 2 * keys]
    sizes = [sum(level.lengths) for level in layout.levels]
    tail = state = None
    outputs = []
    for depth, (level, x, g_level, beta_level) in enumerate(
        zip(layout.levels, qkv.split(sizes), g.split(sizes), beta.split(sizes))
    ):
        if level.parents is not None:
            assert tail is not None and state is not None
            tail, state = take_rows(tail, level.parents), take_rows(state, level.parents)
        more = depth + 1 < len(layout.levels)
        convolved, tail = short_conv(
            x, conv_weight, cu_seqlens=level.cu_seqlens, initial_tail=tail, output_final_tail=more
        )
        q, k, v = convolved.split(widths, dim=-1)
        o, state = gated_delta_rule(
            q.unflatten(-1, (key_heads, key_dim)).unsqueeze(0),
            k.unflatten(-1, (key_heads, key_dim)).unsqueeze(0),
            v.unflatten(-1, (HV, -1)).unsqueeze(0),
            g_level.unsqueeze(0),
            beta_level.unsqueeze(0),
            cu_seqlens=level.cu_seqlens,
            initial_state=state,
            output_final_state=more,
        )
        outputs.append(o.squeeze(0))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
