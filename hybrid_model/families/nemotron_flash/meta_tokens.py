"""Learnt vectors before every document: a segment that all documents of a batch continue."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from hybrid_ft.hybrid_model.door.layout import SequenceLayout, build_layout
from hybrid_ft.hybrid_model.layers.padded_rows import Rows


def behind_root(layout: SequenceLayout, tokens: int) -> SequenceLayout:
    """The layout with a segment of ``tokens`` before it, which every document of it continues."""
    parents = [history[-2] + 1 if len(history) > 1 else 0 for history in layout.ancestors]
    return build_layout((tokens, *layout.lengths), (-1, *parents), layout.cu_seqlens.device)


def with_meta_tokens(rows: Rows, vectors: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Put the vectors [M, D] before every document, in place. Returns what takes the rows' own places
    [B, T] of a result.

    None where there is nothing to take out: a cache that is continued has had them.
    """
    count = len(vectors)
    if rows.layout is not None:
        rows.layout = behind_root(rows.layout, count)
        rows.hidden = torch.cat([vectors.to(rows.hidden.dtype).unsqueeze(0), rows.hidden], dim=1)
        return lambda x: x[:, count:]
    assert rows.real is not None
    if rows.real.shape[1] > rows.hidden.shape[1]:
        rows.real = with_meta(rows.real, count)
        return None
    rows.hidden, rows.real, places = put_in(rows.hidden, rows.real, vectors)
    return lambda x: x.gather(1, places[..., None].expand(-1, -1, x.shape[-1]))


class PutIn(NamedTuple):
    """Rows with the vectors put in before the first real token of each.

    hidden  [B, M + T, D]
    real    bool [B, M + T]
    places  int64 [B, T], where the rows' own tokens have come to lie
    """

    hidden: torch.Tensor
    real: torch.Tensor
    places: torch.Tensor


def put_in(hidden: torch.Tensor, real: torch.Tensor, vectors: torch.Tensor) -> PutIn:
    """hidden [B, T, D] with padding where ``real`` [B, T] is false, and vectors [M, D]."""
    (B, T), M = real.shape, len(vectors)
    columns = torch.arange(T, device=hidden.device).expand(B, T)
    first = real.int().argmax(1, keepdim=True)
    places = columns + M * (columns >= first)
    meta = first + torch.arange(M, device=hidden.device)
    index = torch.cat([meta, places], dim=1)
    parts = torch.cat([vectors.to(hidden.dtype).expand(B, -1, -1), hidden], dim=1)
    order = index.argsort(1)
    return PutIn(parts.gather(1, order[..., None].expand_as(parts)), with_meta(real, M), places)


def with_meta(real: torch.Tensor, tokens: int) -> torch.Tensor:
    """A mask [B, T] with ``tokens`` more real places before the first real one of each row."""
    places = torch.arange(tokens + real.shape[1], device=real.device)
    first = real.int().argmax(1, keepdim=True)
    own = real.gather(1, (places - tokens * (places >= first + tokens)).clamp(max=real.shape[1] - 1))
    return own | ((places >= first) & (places < first + tokens))
