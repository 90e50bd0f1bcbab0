"""A cache of fixed size, written in place, for compiled decoding.

``generate(cache_implementation="static")`` makes transformers' ``StaticCache``, whose layers become these. Every tensor
keeps its address from the first call to the last, and how much is filled stands in a tensor too, so that one graph
serves every step."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, StaticCache

from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache


class StaticAttentionCache(AttentionCache):
    """Keys and values of one layer, [B, HKV, max_cache_len, D] from the first call on.

    started  whether anything has been written since the beginning or the last ``reset``
    """

    is_compileable = True

    def __init__(self, max_cache_len: int) -> None:
        CacheLayerMixin.__init__(self)
        self.max_cache_len = max_cache_len
        self.started = False
        self._columns: torch.Tensor  # int64 [1], in use
        self._real: torch.Tensor  # bool [B, 1, 1, max_cache_len], False at padding and where nothing is yet
        self._history: torch.Tensor  # int64 [B]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        B, HKV = key_states.shape[:2]
        self._keys, self._values = (
            x.new_zeros(B, HKV, self.max_cache_len, x.shape[-1]) for x in (key_states, value_states)
        )
        self._columns, self._history = (torch.zeros(n, dtype=torch.int64, device=key_states.device) for n in (1, B))
        self._real = torch.zeros(B, 1, 1, self.max_cache_len, dtype=torch.bool, device=key_states.device)
        for buffer in self._buffers():
            torch._dynamo.mark_static_address(buffer)

    def _buffers(self) -> tuple[torch.Tensor, ...]:
        assert self._keys is not None and self._values is not None
        return self._keys, self._values, self._columns, self._real, self._history

    @property
    def length(self) -> int:  # type: ignore[override]
        """Waits for the device."""
        return int(self._columns) if self.started else 0

    @property
    def mask(self) -> torch.Tensor | None:
        return self._real[:, 0, 0, : self.length] if self.started else None

    @mask.setter
    def mask(self, mask: torch.Tensor | None) -> None:
        self._real[..., : self.length] = True if mask is None else mask[:, None, None]

    @property
    def history(self) -> torch.Tensor | None:
        return self._history if self.started else None

    @history.setter
    def history(self, history: torch.Tensor | None) -> None:
        assert history is not None
        self._history.copy_(history)

    @torch.no_grad()
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, HKV, T, D]; returns views of all columns in use.

        Raises ValueError for more columns than there is room for, and for other rows than were there before ``reset``.
        """
        start = self.length
        end = start + key_states.shape[2]
        _check_room(self.max_cache_len, end)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self._keys is not None and self._values is not None
        _check_rows(self._keys, key_states)
        self._keys[:, :, start:end].copy_(key_states)
        self._values[:, :, start:end].copy_(value_states)
        self._columns.fill_(end)
        self.started = True
        return self._keys[:, :, :end], self._values[:, :, :end]

    def step(
        self, key_states: torch.Tensor, value_states: torch.Tensor, mask: Any, bias: Any, history: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """One real token of every row, [B, HKV, 1, D]; all columns and which of them are seen. Asks
        nothing of the host."""
        assert self._keys is not None and self._values is not None
        self._keys.index_copy_(2, self._columns, key_states)
        self._values.index_copy_(2, self._columns, value_states)
        self._real.index_fill_(3, self._columns, True)
        self._columns.add_(1)
        self._history.copy_(history)
        return self._keys, self._values, self._real

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.max_cache_len, 0

    def get_max_length(self) -> int:
        return self.max_cache_len

    def reset(self) -> None:
        if self.is_initialized:
            for buffer in self._buffers():
                buffer.zero_()
        self.started = False

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Of as many rows, in place; of others (``batch_select_indices``) in new tensors."""
        if not self.started:
            return
        for name in ("_keys", "_values", "_real", "_history"):
            setattr(self, name, _reordered(getattr(self, name), beam_idx))


class StaticDeltaCache(DeltaCache):
    """One delta layer's past, in tensors that stay."""

    is_compileable = True

    def store(self, tail: torch.Tensor, state: torch.Tensor) -> None:
        for kept, new in ((self.conv_states, tail), (self.recurrent_states, state)):
            old = kept[0]
            if old is None:
                kept[0] = old = torch.empty_like(new, memory_format=torch.contiguous_format)
                torch._dynamo.mark_static_address(old)
            _check_rows(old, new)
            old.copy_(new.detach())
        if not self.has_previous_state[0]:
            self.lazy_initialization(tail, state)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        for kept in (self.conv_states, self.recurrent_states):
            if (old := kept[0]) is not None:
                kept[0] = _reordered(old, beam_idx)


def _reordered(old: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    new = old.index_select(0, rows.to(old.device))
    if len(new) == len(old):
        return old.copy_(new)
    torch._dynamo.mark_static_address(new)
    return new


def step_in_place(cache: Cache | None, shape: tuple[int, int]) -> StaticAttentionCache | None:
    """The first attention layer of a filled static cache that is to take one token of each of its rows; else None.

    Raises ValueError where it is full, unless in a compiled graph, which has no host to ask.
    """
    if not isinstance(cache, StaticCache) or shape[1] != 1 or torch.is_grad_enabled():
        return None
    first = next((layer for layer in cache.layers if isinstance(layer, StaticAttentionCache)), None)
    if first is None or not first.started or len(first._history) != shape[0]:
        return None
    if not torch.compiler.is_compiling():
        _check_room(first.max_cache_len, first.length + 1)
    return first


def check_room(cache: StaticCache, columns: int) -> None:
    """Raises ValueError where the cache is too short for so many columns; asks nothing of the device."""
    for layer in cache.layers:
        if isinstance(layer, StaticAttentionCache):
            _check_room(layer.max_cache_len, columns)


def _check_rows(old: torch.Tensor, new: torch.Tensor) -> None:
    if len(old) != len(new):
        raise ValueError(
            f"past_key_values is a static cache of {len(old)} rows and the batch has {len(new)}; make a new one"
        )


def _check_room(room: int, columns: int) -> None:
    if columns > room:
        raise ValueError(
            f"past_key_values is a static cache of max_cache_len {room} and {columns} tokens a row are to go into it; make it "
            "that long, or generate fewer"
        )
