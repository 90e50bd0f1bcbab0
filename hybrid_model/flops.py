"""Floating point operations of a hybrid, counted for the segments of a batch.

A multiplication with its addition counts as two. Attention is quadratic inside a segment and its ancestors only; the
delta rule is linear: each token reads its head's K x V state with k, writes it, and reads it with q, 2 K V each. The
chunked kernels do more arithmetic than this recurrence, so a share of peak computed from these counts is a lower bound.
Norms, activations and the embedding's look-up are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers.models.olmo_hybrid import OlmoHybridConfig


@dataclass(frozen=True)
class Flops:
    """Operations by kind: matrix products with weights, scores and values, state, vocabulary."""

    weights: int
    attention: int
    delta_rule: int
    head: int

    @property
    def total(self) -> int:
        return self.weights + self.attention + self.delta_rule + self.head


def forward_flops(
    config: OlmoHybridConfig,
    lengths: Sequence[int],
    parents: Sequence[int] | None = None,
    head_tokens: int | None = None,
) -> Flops:
    """One forward pass over segments of these lengths, each continuing its parent (-1: none).

    head_tokens  positions that are projected to the vocabulary; all by default
    """
    tokens = sum(lengths)
    head_tokens = tokens if head_tokens is None else head_tokens
    D = config.hidden_size
    head_dim = getattr(config, "head_dim", None) or D // config.num_attention_heads
    H, HKV = config.num_attention_heads, config.num_key_value_heads
    K, V = config.linear_key_head_dim, config.linear_value_head_dim
    keys, values = config.linear_num_key_heads * K, config.linear_num_value_heads * V
    delta_layers = config.layer_types.count("linear_attention")
    attention_layers = len(config.layer_types) - delta_layers

    mlp = 3 * D * config.intermediate_size
    attention_weights = 2 * D * (H + HKV) * head_dim
    delta_weights = D * (2 * keys + 3 * values + 2 * config.linear_num_value_heads)
    delta_weights += config.linear_conv_kernel_dim * (2 * keys + values)
    per_token = attention_layers * (attention_weights + mlp) + delta_layers * (delta_weights + mlp)
    return Flops(
        weights=2 * tokens * per_token,
        attention=attention_layers * 4 * H * head_dim * _pairs(lengths, parents),
        delta_rule=delta_layers * tokens * config.linear_num_value_heads * 6 * K * V,
        head=2 * head_tokens * D * config.vocab_size,
    )


def training_flops(
    config: OlmoHybridConfig,
    lengths: Sequence[int],
    parents: Sequence[int] | None = None,
    head_tokens: int | None = None,
    frozen_weights: bool = False,
) -> int:
    """Forward and backward. Backward is two forwards: the gradients of inputs and of weights; with frozen weights
    (LoRA, whose own are few) products with weights need only the first."""
    forward = forward_flops(config, lengths, parents, head_tokens)
    with_weights = (forward.weights + forward.head) * (2 if frozen_weights else 3)
    return with_weights + 3 * (forward.attention + forward.delta_rule)


def _pairs(lengths: Sequence[int], parents: Sequence[int] | None) -> int:
    """Query and key pairs: each token with its whole history and itself. Segments may come in any order."""
    if parents is None:
        parents = [-1] * len(lengths)
    pairs = 0
    for s, length in enumerate(lengths):
        past, ancestor = 0, parents[s]
        while ancestor >= 0:
            past += lengths[ancestor]
            ancestor = parents[ancestor]
        pairs += length * past + length * (length + 1) // 2
    return pairs
