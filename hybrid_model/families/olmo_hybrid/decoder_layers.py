"""The two kinds of decoder layer, on hidden states in the layout's form.

Every module below is called as a module, so that hooks, wrappers, adapters and offloading act in decoding as they do
elsewhere; without a layout the call is a step: one token of every row that a cache remembers, [B, 1, D].
"""

from __future__ import annotations

import torch
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache
from hybrid_ft.hybrid_model.door.cached_call import CachedCall
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.layers.attention import Rope
from hybrid_ft.hybrid_model.layers.norm_and_mlp import norm_of_sum, plus_norm


class OlmoHybridAttentionDecoderLayer(hf.OlmoHybridAttentionDecoderLayer):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | None,
        rope: Rope | None,
        cache: AttentionCache | None = None,
        call: CachedCall | None = None,
    ) -> torch.Tensor:
        """[1, N, D] or [B, T, D] to the same."""
        mixed, _ = self.self_attn(hidden_states=hidden_states, layout=layout, rope=rope, cache=cache, call=call)
        hidden_states = plus_norm(hidden_states, self.post_attention_layernorm, mixed)
        return plus_norm(hidden_states, self.post_feedforward_layernorm, self.mlp(hidden_states))


class OlmoHybridLinearAttentionDecoderLayer(hf.OlmoHybridLinearAttentionDecoderLayer):
    """x + delta(norm(x)), then x + mlp(norm(x))."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | None,
        rope: Rope | None,
        cache: DeltaCache | None = None,
        call: CachedCall | None = None,
    ) -> torch.Tensor:
        """[1, N, D] or [B, T, D] to the same."""
        mixed = self.linear_attn(hidden_states=self.input_layernorm(hidden_states), layout=layout, cache=cache)
        hidden_states, normed = norm_of_sum(hidden_states, self.post_attention_layernorm, mixed)
        return hidden_states + self.mlp(normed)
