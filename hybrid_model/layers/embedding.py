"""Embeddings of flat tokens, and what hooks on the embedding are shown."""

from __future__ import annotations

import torch
from torch import nn

from hybrid_ft.hybrid_model.door.layout import Door
from hybrid_ft.hybrid_model.layers.watched import has_hooks, hooks_below, is_sharded


def embed_flat(embed: nn.Module, input_ids: torch.Tensor, door: Door) -> torch.Tensor:
    """Token ids [B, T] to embeddings [N, D] of the real tokens.

    Who watches the embedding is shown the batch's rows, as in transformers' model. In training these are documents,
    equal lengths together: what NEFTune adds goes by the length it sees, and a row may be padded or hold several.
    """
    if not has_hooks(embed) and not hooks_below(embed):
        return embed(door.flatten(input_ids)[None])[0]
    # a sharded module must be called equally often on every process
    if not embed.training or is_sharded(embed):
        return door.flatten(embed(input_ids))
    if door.layout.spread is not None:
        raise ValueError(
            "noise on embeddings goes by documents, whose tokens lie with several processes here; turn it off"
        )
    documents = door.flatten(input_ids).split(door.layout.lengths)
    by_length: dict[int, list[int]] = {}
    for s, length in enumerate(door.layout.lengths):
        by_length.setdefault(length, []).append(s)
    parts: dict[int, torch.Tensor] = {}
    for segments in by_length.values():
        parts |= zip(segments, embed(torch.stack([documents[s] for s in segments])))
    return torch.cat([parts[s] for s in range(len(documents))])
