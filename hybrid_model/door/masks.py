"""Masks of four dimensions, read as what they say of documents."""

from __future__ import annotations

import torch

_HIDDEN = -1e4
"""What is added to a score so that its key is not seen is below this."""


def documents_of(mask: torch.Tensor, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A mask [B, 1, T, T] of pairs (query, key) as the 2-D mask of real tokens and the number of each one's document.

    bool: True where the query sees the key; floating point: added to the scores, 0 where it does. Both results are
    [B, T] on the host. A recurrent layer knows no mask of pairs: it sees its document's tokens up to itself. So each
    query must see exactly these. A query that sees itself not, or a key after itself, is padding.

    Raises ValueError for another shape or other numbers, and for a mask that is not causal attention inside documents.
    """
    B, T = shape
    if tuple(mask.shape) != (B, 1, T, T):
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)}; a mask of pairs must be {(B, 1, T, T)}, one for all heads and "
            "with an empty cache; elsewhere pass the 2-D mask of the tokens"
        )
    seen = mask[:, 0].to("cpu")
    if seen.dtype != torch.bool:
        other = seen[(seen != 0) & ~(seen < _HIDDEN)]
        if len(other):
            raise ValueError(
                f"attention_mask holds {float(other[0]):g}; a mask of pairs must be bool, or 0 where the query sees the key and "
                "its dtype's lowest number elsewhere"
            )
        seen = seen == 0
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    real = seen.diagonal(dim1=1, dim2=2) & ~(seen & ~causal).any(2)
    # the first key that a query sees is where its document begins
    first = seen.int().argmax(2)
    same = first[:, :, None] == first[:, None, :]
    expected = same & causal & real[:, None, :]
    differ = (seen != expected) & real[:, :, None]
    if bool(differ.any()):
        row, query, key = differ.nonzero()[0].tolist()
        raise ValueError(
            f"attention_mask of row {row}: query {query} and key {key} break causal attention inside documents; the "
            "recurrent layers of a hybrid cannot follow such a mask. Pass documents' bounds as position_ids or seq_idx"
        )
    return real, first
