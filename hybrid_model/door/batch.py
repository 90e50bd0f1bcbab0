"""A batch in any form of a trainer or ``generate``, read for the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache

from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache
from hybrid_ft.hybrid_model.door.cache_layers import use_our_layers
from hybrid_ft.hybrid_model.door.cached_call import CachedCall, first_call, later_call, step_call
from hybrid_ft.hybrid_model.door.layout import Door, SequenceLayout, open_door
from hybrid_ft.hybrid_model.door.masks import documents_of
from hybrid_ft.hybrid_model.door.shared_prompts import SharedDoor, open_shared_door, select_tokens
from hybrid_ft.hybrid_model.door.static_cache import step_in_place


@dataclass(frozen=True, eq=False)
class Batch:
    """What the layers are told of a batch.

    door             the way in and out; None in a step, where each row has one real token and continues its cache
    call             what a cache is told; None without one
    caches           one for each layer, or None for each
    past_key_values  the cache that holds them, as the caller knows it
    """

    door: Door | None
    call: CachedCall | None
    caches: Sequence[AttentionCache | DeltaCache | None]
    past_key_values: Cache | None

    @property
    def layout(self) -> SequenceLayout | None:
        return None if self.door is None else self.door.layout

    def positions(self) -> torch.Tensor:
        """int64 [N]: the place in its history of each token that lies here."""
        if self.call is not None:
            return self.call.positions()
        assert self.door is not None
        return self.door.layout.own_positions

    def flat(self, rows: torch.Tensor) -> torch.Tensor:
        """What the caller gives for each place, [B, T, ...], in the form of the hidden states between the layers."""
        return rows if self.door is None else self.door.layout.formed(self.door.flatten(rows))

    def rows(self, hidden: torch.Tensor) -> torch.Tensor:
        """The way back: [B, T, ...], zeros at padding."""
        if self.door is None or self.door.layout.form == self.door.shape:
            return hidden
        return self.door.unflatten(self.door.layout.flat(hidden))

    def kept(self, hidden: torch.Tensor, keep_positions: torch.Tensor) -> torch.Tensor:
        """Of hidden states in their form the chosen ones alone, [1, M, D]; ``select_tokens`` says
        how they are named."""
        if self.door is None:
            if keep_positions.dtype != torch.bool:
                raise ValueError("keep_positions by number is for rows that begin here; pass bool [B, T]")
            return hidden[keep_positions][None]
        return select_tokens(self.door, self.door.layout.flat(hidden), keep_positions)[None]


BATCH_KEYS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx", "layout", "prompt_lengths", "prompt_rows")
"""The keywords of a model's forward that ``read_batch`` knows, besides those that every model of transformers has."""


def read_batch(given: torch.Tensor, layer_types: Sequence[str], **said: Any) -> Batch:
    """What ``read_any_batch`` reads; a step of a filled static cache as a compiled graph can."""
    cache = said.get("past_key_values")
    if (
        said.get("attention_mask") is None
        and (past := step_in_place(cache, (given.shape[0], given.shape[1]))) is not None
    ):
        assert past.history is not None and cache is not None
        return Batch(None, CachedCall(None, None, None, past.history + 1), cache.layers, cache)
    return read_any_batch(given, layer_types, **said)


@torch.compiler.disable  # it asks for lengths on the host
def shape_of(given: torch.Tensor) -> tuple[int, int]:
    """Rows and tokens of ids [B, T] or embeddings [B, T, D]. Raises ValueError for a batch of none."""
    shape = (given.shape[0], given.shape[1])
    if 0 in shape:
        raise ValueError(f"the batch is {shape}, rows and tokens; it must hold at least one token")
    return shape


def read_any_batch(
    given: torch.Tensor,
    layer_types: Sequence[str],
    *,
    attention_mask: torch.Tensor | None = None,
    past_key_values: Cache | None = None,
    use_cache: bool = False,
    layout: SequenceLayout | None = None,
    prompt_lengths: torch.Tensor | None = None,
    prompt_rows: torch.Tensor | None = None,
    share_prompts: bool = True,
    keep_padding: Callable[[], bool] | None = lambda: False,
    **bounds: Any,
) -> Batch:
    """Read input ids [B, T] or embeddings [B, T, D] and what comes with them; a base model's forward says what may.

    bounds are those of ``open_door``. share_prompts: compute a shared prompt once; without it the rows of pairs are
    documents of their own. keep_padding: whether hidden states keep the batch's rows between the layers, padding
    included, for those who look at them; otherwise they are [1, N, D] where there is padding, and [B, T, D] where there
    is none. None: they are [1, N, D] in any case.

    Raises ValueError for what contradicts itself, an empty batch, packed rows with a cache, and a cache of other rows.
    """
    shape = shape_of(given)
    caches = None if past_key_values is None else use_our_layers(past_key_values, layer_types)
    none: list[None] = [None] * len(layer_types)

    # One row of documents that may continue one another: the caller has laid it out.
    if layout is not None:
        if attention_mask is not None or past_key_values is not None:
            raise ValueError("a layout stands for itself: no attention_mask and no cache beside it")
        layout = layout.to(given.device, non_blocking=True)
        if shape != (1, len(layout.own_positions)):
            raise ValueError(f"the layout is of {len(layout.own_positions)} tokens in one row; the batch is {shape}")
        return Batch(Door(layout, shape, None, len(layout.lengths) == 1), None, none, None)

    # Rows that share prompts, as pairs do.
    if prompt_rows is not None:
        if given.ndim != 2 or prompt_lengths is None or past_key_values is not None:
            raise ValueError("prompt_rows goes with input_ids and prompt_lengths, and with no cache")
        if any(bound is not None for bound in bounds.values()):
            raise ValueError("rows that share prompts are one document each: pass no document bounds beside them")
        if share_prompts:
            return Batch(open_shared_door(given, prompt_lengths, prompt_rows, attention_mask), None, none, None)
        use_cache = False

    # A call that continues a filled cache, by one real token a row or by more.
    past = None if caches is None else _attention_cache(caches)
    if caches is not None and past is not None and past.length:
        step = None
        if shape[1] == 1 and not torch.is_grad_enabled():
            step = step_call(past, shape[0], attention_mask)
        call = later_call(past, shape, given.device, attention_mask, bounds) if step is None else step
        return Batch(_formed(call.door, keep_padding), call, caches, past_key_values)

    # Rows or packed rows that begin here, with a cache to fill or without.
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        attention_mask, numbers = documents_of(attention_mask, shape)
        bounds = {"seq_idx": numbers} | {name: bound for name, bound in bounds.items() if bound is not None}
    door = open_door(shape, given.device, attention_mask=attention_mask, **bounds)
    if not door.one_per_row and past_key_values is not None:
        raise ValueError("packed rows cannot fill a cache: pass one document a row, or no past_key_values")
    if not door.one_per_row or not (use_cache or past_key_values is not None):
        return Batch(_formed(door, keep_padding), None, none, None)
    if past_key_values is None:
        past_key_values = DynamicCache()
        caches = use_our_layers(past_key_values, layer_types)
    assert caches is not None
    return Batch(_formed(door, keep_padding), first_call(door, given.device), caches, past_key_values)


def _attention_cache(caches: Sequence[AttentionCache | DeltaCache]) -> AttentionCache:
    """The first one; they all know of the same columns."""
    return next(cache for cache in caches if isinstance(cache, AttentionCache))


def _formed(door: Door | None, keep_padding: Callable[[], bool] | None) -> Door | None:
    """The hidden states in the batch's own rows, where that costs nothing or is asked for."""
    if door is None or keep_padding is None or isinstance(door, SharedDoor):
        return door
    if door.index is not None and not keep_padding():
        return door
    return replace(door, layout=replace(door.layout, form=door.shape, places=door.index))
