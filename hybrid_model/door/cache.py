"""The cache of generation: keys and values, convolution tails, delta states.

``generate`` makes transformers' ``DynamicCache`` before the model is called, and these layers are put into it, so that
the cache a user holds is the one that grows, and beam search reorders it as it would any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import CacheLayerMixin, LinearAttentionCacheLayerMixin

_NOT_CROPPABLE = "a recurrent state cannot be rolled back: assisted and speculative decoding do not work on a hybrid"


class AttentionCache(CacheLayerMixin):
    """Keys and values of one layer in the batch's own columns, padding included: [B, HKV, capacity, D].

    length   columns in use
    mask     bool [B, length], False at padding; None where there is none
    history  int64 [B], real tokens of each row
    keys     [B, HKV, length, D], a view of the columns in use; values likewise
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.mask: torch.Tensor | None = None
        self.history: torch.Tensor | None = None

    @property
    def keys(self) -> torch.Tensor | None:
        return None if self._keys is None else self._keys[:, :, : self.length]

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> torch.Tensor | None:
        return None if self._values is None else self._values[:, :, : self.length]

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._values = values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, HKV, T, D]; returns views of all columns in use. Gradients do not reach the past."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if self._keys is None or self._values is None or end > self._keys.shape[2]:
            self._keys, self._values = (
                self._grown(self._keys, key_states, end),
                self._grown(self._values, value_states, end),
            )
        with torch.no_grad():
            self._keys[:, :, self.length : end].copy_(key_states)
            self._values[:, :, self.length : end].copy_(value_states)
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]

    def step(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        mask: torch.Tensor | None,
        bias: torch.Tensor | None,
        history: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Append one token of every row, [B, HKV, 1, D]; keys and values to look at, and what is
        added to the scores."""
        keys, values = self.update(key_states, value_states)
        self.mask, self.history = mask, history
        return keys, values, bias

    @staticmethod
    def _room(like: torch.Tensor, rows: int, needed: int) -> torch.Tensor:
        # a quarter more than needed: copies stay a small share of decoding, unused memory too
        return like.new_empty(rows, like.shape[1], needed + max(64, needed // 4), like.shape[3])

    def _grown(self, old: torch.Tensor | None, new: torch.Tensor, needed: int) -> torch.Tensor:
        buffer = self._room(new, len(new), needed)
        if old is not None and self.length:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.length, self.mask, self.history = 0, None, None
        self._keys = self._values = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        if self.length == 0:
            return
        for name in ("_keys", "_values", "mask", "history"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, beam_idx.to(value.device)))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; ``indices`` int64 or a bool mask."""
        if self.length:
            rows = torch.arange(len(self._keys), device=indices.device)[indices]  # type: ignore[arg-type]
            self.reorder_cache(rows)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.length:
            rows = torch.arange(len(self._keys)).repeat_interleave(repeats)  # type: ignore[arg-type]
            self.reorder_cache(rows)

    def add_rows(self, others: Sequence[AttentionCache]) -> None:
        """Put the rows of others, of as many columns, below these."""
        all_of = (self, *others)
        assert self.history is not None and all(each.length == self.length for each in all_of)
        self._keys, self._values = (
            self._below([getattr(each, name) for each in all_of]) for name in ("keys", "values")
        )
        if any(each.mask is not None for each in all_of):
            self.mask = torch.cat([each._whole_mask() for each in all_of])
        self.history = torch.cat([each.history for each in all_of if each.history is not None])

    def _below(self, parts: list[torch.Tensor]) -> torch.Tensor:
        """Keys or values in use, with room for more columns, in one copy."""
        buffer = self._room(parts[0], sum(map(len, parts)), self.length)
        torch.cat(parts, out=buffer[:, :, : self.length])
        return buffer

    def _whole_mask(self) -> torch.Tensor:
        """The mask, also where there is no padding."""
        assert self.history is not None
        if self.mask is not None:
            return self.mask
        return torch.ones(len(self.history), self.length, dtype=torch.bool, device=self.history.device)

    def crop(self, tokens_to_remove: int) -> None:
        raise RuntimeError(_NOT_CROPPABLE)


class DeltaCache(LinearAttentionCacheLayerMixin):
    """One delta layer's past, in the places where transformers' cache looks for it.

    conv_states[0]       [B, W - 1, 2 H K + HV V], the last inputs of the q, k and v convolutions, side by side
    recurrent_states[0]  [B, HV, K, V]
    """

    is_compileable = False

    @property
    def tail(self) -> torch.Tensor | None:
        return self.conv_states[0] if self.has_previous_state[0] else None

    @property
    def state(self) -> torch.Tensor | None:
        return self.recurrent_states[0] if self.has_previous_state[0] else None

    def store(self, tail: torch.Tensor, state: torch.Tensor) -> None:
        self.conv_states[0] = tail.detach()
        self.recurrent_states[0] = state.detach()
        if not self.has_previous_state[0]:
            self.lazy_initialization(tail, state)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; ``indices`` int64 or a bool mask."""
        if self.tail is not None:
            self.reorder_cache(torch.arange(len(self.tail), device=indices.device)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.tail is not None:
            self.reorder_cache(torch.arange(len(self.tail)).repeat_interleave(repeats))

    def add_rows(self, others: Sequence[DeltaCache]) -> None:
        """Put the rows of others below these."""
        self.conv_states[0] = torch.cat([each.conv_states[0] for each in (self, *others)])
        self.recurrent_states[0] = torch.cat([each.recurrent_states[0] for each in (self, *others)])

    def lazy_initialization(
        self,
        conv_states: torch.Tensor | None = None,
        recurrent_states: torch.Tensor | None = None,
        state_idx: int = 0,
    ) -> None:
        assert conv_states is not None
        self.dtype, self.device = conv_states.dtype, conv_states.device
        self.has_previous_state[state_idx] = True
        self.is_conv_states_initialized[state_idx] = True
        self.is_recurrent_states_initialized[state_idx] = True

    def update_conv_state(self, conv_states: torch.Tensor, state_idx: int = 0) -> torch.Tensor:
        raise NotImplementedError("the layer's two parts are stored together, by store")

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0) -> torch.Tensor:
        raise NotImplementedError("the layer's two parts are stored together, by store")

    def crop(self, tokens_to_remove: int) -> None:
        raise RuntimeError(_NOT_CROPPABLE)
