"""Attention for transformers' own modules, through its public ``AttentionInterface``.

Where a layout is set, a module's queries, keys and values are one flat row, and each token attends to its own history
(``segment_attention``), or to the last tokens of it where the layer has a window. Without a layout, as in a call with
a cache, transformers' own attention and mask are used.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.layers.attention import fits_varlen, segment_attention, varlen_attention
from hybrid_ft.hybrid_model.layers.heads import attend

NAME = "hybrid_ft"
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what changes the scores and is not computed here


def flat_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, H, N, D], key [1, HKV, N, D], value [1, HKV, N, DV] -> [1, N, H, DV], of the N tokens that lie here.

    Raises ValueError for soft caps, sinks and position biases.
    """
    layout = current_layout()
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    for name in _UNKNOWN:
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: {name} is not computed on flat batches")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (_as_multiplied(x).squeeze(0).transpose(0, 1) for x in (query, key, value))
    if sliding_window is not None and sliding_window < _longest_history(layout):
        kind = partial(window_attention, layout=layout, scale=scale, window=sliding_window, dropout=dropout)
    else:
        kind = partial(segment_attention, layout=layout, scale=scale, dropout=dropout)
    return attend(q, k, v, layout, kind).unsqueeze(0), None


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: SequenceLayout,
    scale: float,
    window: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of q [N, H, D] to the last ``window`` tokens of each token's history, itself counted; k, v [N, HKV, D].

    On a GPU one launch of torch's flash attention takes all segments, in 16 bits. Elsewhere queries are taken in blocks
    of a window, with a mask, so that the work is linear in the number of tokens.
    """
    gqa = q.shape[1] != k.shape[1]
    if layout.lengths and q.shape[-1] == v.shape[-1] and fits_varlen(q, gqa, dropout):
        return varlen_attention(q, k, v, layout, scale, gqa, window)
    queries, keys, values = (x.transpose(0, 1).split(layout.lengths, dim=1) for x in (q, k, v))
    outputs = []
    for s, history in enumerate(layout.ancestors):
        if layout.lengths[s] == 0:
            continue
        reach, past = layout.lengths[s], []
        for a in reversed(history):
            past.append(a)
            if a != s:
                reach += layout.lengths[a]
            if reach >= layout.lengths[s] + window - 1:
                break
        k_s = torch.cat([keys[a] for a in reversed(past)], dim=1)
        v_s = torch.cat([values[a] for a in reversed(past)], dim=1)
        before = k_s.shape[1] - layout.lengths[s]
        for start in range(0, layout.lengths[s], window):
            stop = min(start + window, layout.lengths[s])
            first = max(0, before + start - window + 1)
            last = before + stop
            i = torch.arange(before + start, last, device=q.device)[:, None]
            j = torch.arange(first, last, device=q.device)
            o = F.scaled_dot_product_attention(
                queries[s][None, :, start:stop],
                k_s[None, :, first:last],
                v_s[None, :, first:last],
                attn_mask=(j <= i) & (j > i - window),
                dropout_p=dropout,
                scale=scale,
                enable_gqa=gqa,
            )
            outputs.append(o.squeeze(0).transpose(0, 1))
    return torch.cat(outputs) if outputs else q


def _as_multiplied(x: torch.Tensor) -> torch.Tensor:
    """In autocast's dtype, which torch's attention would take too: rope widens queries and keys, and kernels that take
    all segments at once are chosen by dtype."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype == torch.float32
    return x.to(torch.get_autocast_dtype(kind)) if cast else x


def _longest_history(layout: SequenceLayout) -> int:
    return max((sum(layout.lengths[a] for a in history) for history in layout.ancestors), default=0)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """The layout stands for the mask."""
    return None if current_layout() is not None else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, flat_attention)
AttentionMaskInterface.register(NAME, _mask)
