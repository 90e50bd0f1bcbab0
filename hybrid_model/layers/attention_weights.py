"""Attention weights on request: formed beside the attention, which never forms them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.layers.attention import OlmoHybridAttention


@contextmanager
def recorded_weights(layers: Iterable[nn.Module]) -> Iterator[list[torch.Tensor]]:
    """A list that gets the weights [B, H, T, S] of every attention layer that runs inside the block, zeros for padding.

    T columns of the call, S of the cache, which must hold the rows. Queries are projected a second time, and T x S
    numbers a head are kept: for looking at, not for training.
    """
    weights: list[torch.Tensor] = []
    with ExitStack() as around:
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, OlmoHybridAttention):
                    handle = module.register_forward_hook(
                        lambda attention, _, given, out: weights.append(_weights(attention, **given)), with_kwargs=True
                    )
                    around.callback(handle.remove)
        yield weights


def _weights(
    attention: OlmoHybridAttention, hidden_states: torch.Tensor, layout: Any, rope: Any, cache: Any, call: Any
) -> torch.Tensor:
    q = attention.q_norm(attention.q_proj(hidden_states))
    q = q.flatten(0, 1) if layout is None else layout.flat(q)
    q = q.unflatten(-1, (-1, attention.head_dim))
    if rope is not None:
        q, _ = hf.apply_rotary_pos_emb(q, q, *rope)
    q = q.unsqueeze(1) if layout is None else call.door.unflatten(q)
    keys = cache.keys.repeat_interleave(attention.num_key_value_groups, dim=1)
    scores = attention.scaling * q.transpose(1, 2).float() @ keys.float().transpose(2, 3)
    T, S = scores.shape[-2:]
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)[None, None]
    if cache.mask is not None:
        real = cache.mask
        seen = seen & real[:, None, None, :] & real[:, None, -T:, None]
    return scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num(0.0).to(q.dtype)
