"""Learnt vectors before every document: a segment that all documents of a batch continue."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hybrid_ft.hybrid_model.door.layout import SequenceLayout, build_layout


def behind_root(layout: SequenceLayout, tokens: int) -> SequenceLayout:
    """The layout with a segment of ``tokens`` before it, which every document of it continues."""
    parents = [history[-2] + 1 if len(history) > 1 else 0 for history in layout.ancestors]
    return build_layout((tokens, *layout.lengths), (-1, *parents), layout.cu_seqlens.device)


class Rows(NamedTuple):
    """Rows with the vectors put in before the first real token of each.

    hidden  [B, M + T, D]
    real    bool [B, M + T]
    places  int64 [B, T], where the rows' own tokens have come to lie
    """

    hidden: torch.Tensor
    real: torch.Tensor
    places: torch.Tensor


def put_in(hidden: torch.Tensor, real: torch.Tensor, vectors: torch.Tensor) -> Rows:
    """hidden [B, T, D] with padding where ``real`` [B, T] is false, and vectors [M, D]."""
    (B, T), M = real.shape, len(vectors)
    columns = torch.arange(T, device=hidden.device).expand(B, T)
    first = real.int().argmax(1, keepdim=True)
    places = columns + M * (columns >= first)
    meta = first + torch.arange(M, device=hidden.device)
    index = torch.cat([meta, places], dim=1)
    parts = torch.cat([vectors.to(hidden.dtype).expand(B, -1, -1), hidden], dim=1)
    order = index.argsort(1)
    return Rows(parts.gather(1, order[..., None].expand_as(parts)), with_meta(real, M), places)


def with_meta(real: torch.Tensor, tokens: int) -> torch.Tensor:
    """A mask [B, T] with ``tokens`` more real places before the first real one of each row."""
    places = torch.arange(tokens + real.shape[1], device=real.device)
    first = real.int().argmax(1, keepdim=True)
    own = real.gather(1, (places - tokens * (places >= first + tokens)).clamp(max=real.shape[1] - 1))
    return own | ((places >= first) & (places < first + tokens))
