"""Floating point operations of a hybrid, counted for the segments of a batch.

A multiplication with its addition counts as two. Attention is quadratic inside a segment and its ancestors only, or in
its window; a recurrent state is linear: in the delta rule each token reads its head's K x V state with k, writes it,
and reads it with q, 2 K V each. The chunked kernels do more arithmetic than this recurrence, so a share of peak
computed from these counts is a lower bound. Norms, activations and the embedding's look-up are left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from transformers import PreTrainedConfig

from hybrid_ft.hybrid_model.checkpoint.text_model import tensor_shapes
from hybrid_ft.hybrid_model.families.known import family_of


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
    config: PreTrainedConfig,
    lengths: Sequence[int],
    parents: Sequence[int] | None = None,
    head_tokens: int | None = None,
) -> Flops:
    """One forward pass over segments of these lengths, each continuing its parent (-1: none).

    head_tokens  positions that are projected to the vocabulary; all by default
    """
    family = family_of(config)
    head_tokens = sum(lengths) if head_tokens is None else head_tokens
    if before := family.before(config):
        parents = [-1, *(max(parent, -1) + 1 for parent in parents or [-1] * len(lengths))]
        lengths = [before, *lengths]
    tokens = sum(lengths)
    mixings = [mixing for layer in family.mixings(config) for mixing in layer]
    pairs = {window: _pairs(lengths, parents, window) for window in {mixing.window for mixing in mixings}}
    return Flops(
        weights=2 * tokens * _weights_per_token(config),
        attention=sum(mixing.per_pair * pairs[mixing.window] for mixing in mixings),
        delta_rule=tokens * sum(mixing.per_token for mixing in mixings),
        head=2 * head_tokens * config.hidden_size * config.vocab_size,
    )


def _weights_per_token(config: PreTrainedConfig) -> int:
    """Weights of the layers that a token is multiplied with: all matrices and convolutions, of
    experts the chosen ones."""
    key = config.to_json_string(use_diff=False)
    if key not in _WEIGHTS:
        _WEIGHTS[key] = _count_weights(config)
    return _WEIGHTS[key]


_WEIGHTS: dict[str, int] = {}


def _count_weights(config: PreTrainedConfig) -> int:
    experts = next(
        (
            count
            for key in ("num_local_experts", "num_experts", "n_routed_experts")
            if (count := getattr(config, key, None))
        ),
        1,
    )
    routed = family_of(config).experts
    total = 0
    for name, shape in tensor_shapes(config).items():
        if ".layers." not in name or len(shape) < 2 or name.endswith("A_log"):
            continue
        chosen = name.endswith(routed) if routed else False
        total += prod(shape) * config.num_experts_per_tok // experts if chosen else prod(shape)
    return total


def training_flops(
    config: PreTrainedConfig,
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


def _pairs(lengths: Sequence[int], parents: Sequence[int] | None, window: int | None) -> int:
    """Query and key pairs: each token with its whole history and itself, or the last ``window`` tokens of both.

    Segments may come in any order.
    """
    if parents is None:
        parents = [-1] * len(lengths)
    pairs = 0
    for s, length in enumerate(lengths):
        past, ancestor = 0, parents[s]
        while ancestor >= 0:
            past += lengths[ancestor]
            ancestor = parents[ancestor]
        growing = length if window is None else min(max(window - past, 0), length)
        pairs += growing * past + growing * (growing + 1) // 2
        pairs += (length - growing) * (window or 0)
    return pairs
