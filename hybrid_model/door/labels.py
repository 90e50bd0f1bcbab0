"""Labels of tokens that nothing in their own document predicts."""

from __future__ import annotations

import torch

from hybrid_ft.hybrid_model.door.layout import SequenceLayout

IGNORED = -100


def predictable(
    labels: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
    layout: SequenceLayout | None = None,
) -> torch.Tensor:
    """The labels [B, T] with -100 where the place before is padding or belongs to another document.

    A causal loss takes a token's prediction from the place before it. There stands, at the first token of a row padded
    on the left, no hidden state, and at the first token of a packed document, another document's. The bounds are those
    of ``open_door``; nothing waits for the device. attention_mask may be wider than the labels (a filled cache's).
    """
    B, T = labels.shape
    unpredicted = torch.zeros(B, T, dtype=torch.bool, device=labels.device)
    later = unpredicted[:, 1:]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        later |= attention_mask[:, -T:][:, :-1].to(labels.device) == 0
    if position_ids is not None:
        later |= position_ids.to(labels.device).expand(B, T).diff(dim=1) != 1
    if seq_idx is not None:
        later |= seq_idx.to(labels.device).expand(B, T).diff(dim=1) != 0
    starts = cu_seq_lens_q if layout is None else layout.cu_seqlens
    if starts is not None:
        padded = unpredicted.new_zeros(B * T + 1)
        padded[starts.to(labels.device).flatten().long()] = True
        unpredicted |= padded[:-1].view(B, T)
    return labels.masked_fill(unpredicted, IGNORED)
