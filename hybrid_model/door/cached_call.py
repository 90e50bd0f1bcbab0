"""One call with a cache: new columns, padding, each row's history length."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hybrid_ft.hybrid_model.door.cache import AttentionCache
from hybrid_ft.hybrid_model.door.layout import Door, open_door


@dataclass(frozen=True, eq=False)
class CachedCall:
    """What the layers' caches are told of one call.

    door     the new tokens; None where each row gets one and none is padding
    mask     bool [B, past + T] over the columns, False at padding; None where there is none
    bias     the same for one query a row, added to its scores: 0 or -inf, [B, 1, 1, past + 1]
    history  int64 [B], real tokens of each row, the new ones counted
    """

    door: Door | None
    mask: torch.Tensor | None
    bias: torch.Tensor | None
    history: torch.Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> CachedCall:
        """The same for another device: accelerate moves arguments to the device of the layer they go to."""

        def move(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device, non_blocking=non_blocking)

        door = None if self.door is None else self.door.to(device, non_blocking)
        return CachedCall(door, move(self.mask), move(self.bias), self.history.to(device, non_blocking=non_blocking))

    def positions(self) -> torch.Tensor:
        """int64 [N]: each new token's place in its row's history."""
        if self.door is None:
            return self.history - 1
        layout = self.door.layout
        lengths = layout.cu_seqlens.diff().long()
        return layout.positions + torch.repeat_interleave(self.history - lengths, lengths)


def first_call(door: Door, device: torch.device) -> CachedCall:
    """The call that fills an empty cache."""
    mask = None
    if door.index is not None:
        mask = torch.zeros(door.shape, dtype=torch.bool, device=device)
        mask.view(-1)[door.index] = True
    return CachedCall(door, mask, None, door.layout.cu_seqlens.diff().long())


def later_call(
    past: AttentionCache,
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: torch.Tensor | None,
    boundaries: dict[str, torch.Tensor | None],
) -> CachedCall:
    """A call that continues a filled cache with ``shape`` (B, T) new columns.

    Raises ValueError for a mask of another width than the past and the new columns, and for packed rows.
    """
    history = _history(past, shape[0])
    new = new_columns(past, shape, attention_mask)
    door = open_door(shape, device, attention_mask=new, **boundaries)
    if not door.one_per_row:
        raise ValueError("packed rows cannot continue a cache: pass one document a row")
    mask = past.mask
    if mask is not None or door.index is not None:
        old = history.new_ones((shape[0], past.length), dtype=torch.bool) if mask is None else mask
        mask = torch.cat((old, old.new_ones(shape) if new is None else new.bool()), dim=1)
    return CachedCall(door, mask, None, history + door.layout.cu_seqlens.diff().long())


def step_call(past: AttentionCache, rows: int, attention_mask: torch.Tensor | None) -> CachedCall | None:
    """A call with one new token in each row; None where one of them is padding."""
    history = _history(past, rows)
    new = new_columns(past, (rows, 1), attention_mask)
    if new is not None and not bool(new.all()):
        return None
    mask, bias = past.mask, None
    if mask is not None:
        mask = torch.cat((mask, mask.new_ones(rows, 1)), dim=1)
        bias = torch.zeros(mask.shape, dtype=past.dtype, device=mask.device)
        bias = bias.masked_fill_(~mask, -torch.inf)[:, None, None]
    return CachedCall(None, mask, bias, history + 1)


def _history(past: AttentionCache, rows: int) -> torch.Tensor:
    """Real tokens of each row, int64 [B]. Raises ValueError for a cache of other rows."""
    assert past.history is not None
    check_rows(len(past.history), rows)
    return past.history


def check_rows(held: int, rows: int) -> None:
    """Raise ValueError unless a batch of that many ``rows`` continues a cache that ``held`` as many."""
    if held != rows:
        raise ValueError(
            f"past_key_values holds {held} rows and the batch {rows}; they must be the same rows "
            "(batch_select_indices and batch_repeat_interleave of the cache change its rows)"
        )


def new_columns(
    past: AttentionCache, shape: tuple[int, int], attention_mask: torch.Tensor | None
) -> torch.Tensor | None:
    """The part of the mask that is about the new columns."""
    if attention_mask is None:
        return None
    rows, columns = shape
    if attention_mask.ndim == 4:
        raise ValueError("with a filled cache attention_mask must be the 2-D mask of the tokens, past and new")
    if attention_mask.shape != (rows, past.length + columns):
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}; with {past.length} columns in the cache and "
            f"{columns} new ones it must be {(rows, past.length + columns)}"
        )
    return attention_mask[:, past.length :]
