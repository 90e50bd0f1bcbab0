"""Masks and rope of padded rows, for models of our own without a layout."""

from __future__ import annotations

import torch


def seen_by_queries(real: torch.Tensor, queries: int, window: int | None = None) -> torch.Tensor:
    """bool [B, 1, T, S]: of the places ``real`` [B, S] those that each of the last T = ``queries`` sees, or ``window`` of them.

    A query at a padded place sees itself, so that its softmax is defined. Padding lies before or after a row's tokens.
    """
    whole = real.shape[1]
    j = torch.arange(whole, device=real.device)
    i = j[whole - queries :, None]
    seen = ((j <= i) & real[:, None, None, :]) | (j == i)
    return seen if window is None else seen & (j > i - window)


def rope_of(positions: torch.Tensor, size: int, base: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [B, T, size] of the positions [B, T], each frequency twice, as transformers rotates halves."""
    inverse = 1.0 / base ** (torch.arange(0, size, 2, device=positions.device).float() / size)
    angles = (positions[..., None].float() * inverse).repeat(1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)
