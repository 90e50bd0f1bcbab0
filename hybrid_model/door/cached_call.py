"""One call with a cache: which columns are new, which are padding, how long each row's history is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hybrid_ft.hybrid_model.door.cache import AttentionMemory
from hybrid_ft.hybrid_model.door.layout import Door, open_door


@dataclass(frozen=True, eq=False)
class Turn:
    """
    door     the new tokens; None where each row gets one and none is padding
    mask     bool [B, past + T] over the columns, False at padding; None where there is none
    bias     the same for one query a row, added to its scores: 0 or -inf, [B, 1, 1, past + 1]
    history  int64 [B], real tokens of each row, the new ones counted
    """

    door: Door | None
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    history: torch.Tensor

    def positions(self) -> torch.Tensor:
        """int64 [N]: each new token's place in its row's history."""
        if self.door is None:
            return self.history - 1
        layout = self.door.layout
        lengths = layout.cu_seqlens.diff().long()
        return layout.positions + torch.repeat_interleave(self.history - lengths, lengths)


def first_turn(door: Door, device: torch.device) -> Turn:
    """The call that fills an empty cache."""
    mask = None
    if door.index is not None:
        mask = torch.zeros(door.shape, dtype=torch.bool, device=device)
        mask.view(-1)[door.index] = True
    return Turn(door, mask, None, door.layout.cu_seqlens.diff().long())


def later_turn(
    past: AttentionMemory,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: torch.Tensor | None,
    boundaries: dict[str, torch.Tensor | None],
) -> Turn:
    """A call that continues a filled cache with ``shape`` (B, T) new columns.

    Raises ValueError for a mask of another width than the past and the new columns, and for packed rows.
    """
    assert past.history is not None
    new = new_columns(past, shape, attention_mask)
    door = open_door(shape, device, attention_mask=new, **boundaries)
    if not door.one_per_row:
        raise ValueError("packed rows cannot continue a cache: pass one document a row")
    mask = past.mask
    if mask is not None or door.index is not None:
        old = past.history.new_ones((shape[0], past.length), dtype=torch.bool) if mask is None else mask
        mask = torch.cat((old, old.new_ones(shape) if new is None else new.bool()), dim=1)
    return Turn(door, mask, None, past.history + door.layout.cu_seqlens.diff().long())


def step_turn(past: AttentionMemory, rows: int, attention_mask: torch.Tensor | None) -> Turn | None:
    """A call with one new token in each row; None where one of them is padding."""
    assert past.history is not None
    new = new_columns(past, (rows, 1), attention_mask)
    if new is not None and not bool(new.all()):
        return None
    mask, bias = past.mask, None
    if mask is not None:
        mask = torch.cat((mask, mask.new_ones(rows, 1)), dim=1)
        bias = torch.zeros(mask.shape, dtype=past.keys.dtype, device=mask.device)
        bias = bias.masked_fill_(~mask, -torch.inf)[:, None, None]
    return Turn(None, mask, bias, past.history + 1)


def new_columns(
    past: AttentionMemory, shape: tuple[int, int], attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The part of the mask that is about the new columns."""
    if attention_mask is None:
        return None
    rows, columns = shape
    if attention_mask.shape != (rows, past.length + columns):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}; with {past.length} columns in the cache and "
            f"{columns} new ones it must be {(rows, past.length + columns)}"
        )
    return attention_mask[:, past.length :]
