"""Causal attention inside each segment and to the segments it continues, on flat tokens.

No mask of all tokens by all tokens is ever built. On a GPU one launch takes all segments, in 16 bits: flash-attn's
where the package for that GPU is installed, else torch's; elsewhere each segment is a call of its own, or equal
ones share a call.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from torch.nn.attention import varlen
from torch.nn.attention.bias import causal_lower_right
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.door.cache import AttentionCache
from hybrid_ft.hybrid_model.door.cached_call import CachedCall
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.door.rows import take_rows
from hybrid_ft.hybrid_model.layers.heads import attend
from hybrid_ft.hybrid_model.layers.installed_flash import Varlen, installed_varlen
from hybrid_ft.hybrid_model.layers.projections import projections

Rope = tuple[torch.Tensor, torch.Tensor]

# torch 2.10 has it without these
_VARLEN = {"scale", "window_size"} <= inspect.signature(varlen.varlen_attn).parameters.keys()
_VARLEN_GQA = "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


def segment_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SequenceLayout, scale: float, dropout: float = 0.0
) -> torch.Tensor:
    """Attention of q [N, H, D] to k and v [N, HKV, D], each token to its own history. Returns [N, H, D].

    H is a multiple of HKV; each key head serves H // HKV consecutive query heads.
    """
    gqa = q.shape[1] != k.shape[1]
    if _fits_flash(q, dropout) and layout.lengths and 0 not in layout.lengths:
        flash = installed_varlen(q, k)
        if flash is not None:
            return varlen_attention(q, k, v, layout, scale, gqa, flash=flash)
    if len(layout.levels) == 1 and len(set(layout.lengths)) == 1:
        rows = (len(layout.lengths), layout.lengths[0])
        q, k, v = (x.unflatten(0, rows).transpose(1, 2) for x in (q, k, v))
        o = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=gqa)
        return o.transpose(1, 2).flatten(0, 1)
    if fits_varlen(q, gqa, dropout):
        return varlen_attention(q, k, v, layout, scale, gqa)

    # split once and not slice often: the gradient of a slice is as large as what it was cut from
    queries, keys, values = (x.transpose(0, 1).split(layout.lengths, dim=1) for x in (q, k, v))
    outputs = []
    for s, history in enumerate(layout.ancestors):
        if layout.lengths[s] == 0:
            continue
        past = [a for a in history if layout.lengths[a]]
        q_s, k_s, v_s = queries[s], keys[s], values[s]
        if len(past) > 1:
            k_s = torch.cat([keys[a] for a in past], dim=1)
            v_s = torch.cat([values[a] for a in past], dim=1)
        outputs.append(_causal(q_s, k_s, v_s, scale, gqa, dropout))
    return torch.cat(outputs) if outputs else q


def _fits_flash(q: torch.Tensor, dropout: float) -> bool:
    """On a GPU, 16 bits, no dropout."""
    return q.is_cuda and q.dtype in (torch.bfloat16, torch.float16) and not dropout


def fits_varlen(q: torch.Tensor, gqa: bool, dropout: float) -> bool:
    """Whether torch's flash attention takes this, with heads of up to 256 in eights."""
    D = q.shape[-1]
    return _VARLEN and (_VARLEN_GQA or not gqa) and D <= 256 and D % 8 == 0 and _fits_flash(q, dropout)


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: SequenceLayout,
    scale: float,
    gqa: bool,
    window: int | None = None,
    flash: Varlen | None = None,
) -> torch.Tensor:
    """A segment's queries are the last of its keys, as flash attention's causal mask has it. ``window``: of these a
    query sees so many at most, itself counted."""
    keys = layout.keys
    if keys.tokens is not None:
        k, v = take_rows(k, keys.tokens), take_rows(v, keys.tokens)
    lengths = (layout.cu_seqlens, keys.cu_seqlens, layout.max_seqlen, keys.max_seqlen)
    if flash is not None:
        assert window is None
        return flash(q, k, v, *lengths, scale)
    options: dict[str, Any] = {"enable_gqa": True} if gqa else {}
    past = -1 if window is None else window - 1  # the query's own place is not counted there
    o: Any = varlen.varlen_attn(q, k, v, *lengths, scale=scale, window_size=(past, 0), **options)
    return o


def _causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, gqa: bool, dropout: float = 0.0
) -> torch.Tensor:
    """q [H, L, D] are the last L of the P + L positions of k and v [HKV, P + L, D]. Returns [L, H, D]."""
    square = q.shape[1] == k.shape[1]
    o = F.scaled_dot_product_attention(
        q.unsqueeze(0),
        k.unsqueeze(0),
        v.unsqueeze(0),
        attn_mask=None if square else causal_lower_right(q.shape[1], k.shape[1]),
        dropout_p=dropout,
        is_causal=square,
        scale=scale,
        enable_gqa=gqa,
    )
    return o.squeeze(0).transpose(0, 1)


class OlmoHybridAttention(hf.OlmoHybridAttention):
    """transformers' parameters, another forward: keys and queries normed over all heads, rope where
    the config has it."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | None,
        rope: Rope | None,
        cache: AttentionCache | None = None,
        call: CachedCall | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Hidden states in the layout's form to the same; without a layout a step, [B, 1, D].

        transformers' attention gives its weights as well; None stands in their place.
        """
        q, k, v = projections(hidden_states, self.q_proj, self.k_proj, self.v_proj)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.flatten(0, 1) if layout is None else layout.flat(x) for x in (q, k, v))
        q, k, v = (x.unflatten(-1, (-1, self.head_dim)) for x in (q, k, v))
        if rope is not None:
            q, k = hf.apply_rotary_pos_emb(q, k, *rope)
        if layout is None:
            assert cache is not None and call is not None
            return self.o_proj(self._step(q, k, v, cache, call).flatten(2)), None
        if cache is None:
            dropout = self.attention_dropout if self.training else 0.0
            o = attend(q, k, v, layout, partial(segment_attention, layout=layout, scale=self.scaling, dropout=dropout))
        else:
            assert call is not None and call.door is not None
            fresh = cache.length == 0
            keys, values = cache.update(call.door.unflatten(k).transpose(1, 2), call.door.unflatten(v).transpose(1, 2))
            cache.mask, cache.history = call.mask, call.history
            if fresh:
                o = segment_attention(q, k, v, layout, self.scaling)
            else:
                o = self._continue_rows(q, keys, values, layout, call.mask)
        return self.o_proj(layout.formed(o.flatten(1))), None

    def _continue_rows(
        self,
        q: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        layout: SequenceLayout,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """q [N, H, D], rows end to end; keys and values [B, HKV, S, D] of all columns. Returns [N, H, D]."""
        outputs = []
        for b, q_b in enumerate(q.transpose(0, 1).split(layout.lengths, dim=1)):
            k_b, v_b = keys[b], values[b]
            if mask is not None:
                real = mask[b].nonzero().squeeze(1)
                k_b, v_b = k_b.index_select(1, real), v_b.index_select(1, real)
            if q_b.shape[1]:
                outputs.append(_causal(q_b, k_b, v_b, self.scaling, self.num_key_value_groups > 1))
        return torch.cat(outputs)

    def _step(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: AttentionCache, call: CachedCall
    ) -> torch.Tensor:
        """One token of every row, [B, H, D] and [B, HKV, D]; written to the cache. Returns
        [B, 1, H, D]. No gradients."""
        keys, values, bias = cache.step(k.unsqueeze(2), v.unsqueeze(2), call.mask, call.bias, call.history)
        o = F.scaled_dot_product_attention(
            q.unsqueeze(2),
            keys,
            values,
            attn_mask=bias,
            scale=self.scaling,
            enable_gqa=self.num_key_value_groups > 1,
        )
        return o.transpose(1, 2)
