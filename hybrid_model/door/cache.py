"""What generation remembers: keys and values of the attention layers, convolution tails and states of the delta ones.

``generate`` makes transformers' ``DynamicCache`` before the model is called; ``adopt`` puts these layers into it, so
that the cache a user holds is the one that grows, and beam search reorders it as it would any other.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, LinearAttentionCacheLayerMixin

_NOT_CROPPABLE = "a recurrent state cannot be rolled back: assisted and speculative decoding do not work on a hybrid"


class AttentionMemory(CacheLayerMixin):
    """Keys and values of one layer in the batch's own columns, padding included: [B, HKV, capacity, D].

    length   columns in use
    mask     bool [B, length], False at padding; None where there is none
    history  int64 [B], real tokens of each row
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0
        self.mask: torch.Tensor | None = None
        self.history: torch.Tensor | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(0)
        self.values = value_states.new_empty(0)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [B, HKV, T, D]; returns views of all columns in use. Gradients do not reach the past."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[2]
        if self.keys.numel() == 0 or end > self.keys.shape[2]:
            self._grow(key_states, value_states, end)
        with torch.no_grad():
            self.keys[:, :, self.length : end].copy_(key_states)
            self.values[:, :, self.length : end].copy_(value_states)
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, key_states: torch.Tensor, value_states: torch.Tensor, needed: int) -> None:
        # a quarter more than needed: copies stay a small share of decoding, unused memory too
        capacity = needed + max(64, needed // 4)
        grown = []
        for old, new in ((self.keys, key_states), (self.values, value_states)):
            buffer = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
            if self.length:
                buffer[:, :, : self.length] = old[:, :, : self.length]
            grown.append(buffer)
        self.keys, self.values = grown

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.length, self.mask, self.history = 0, None, None

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        if self.length == 0:
            return
        rows = beam_idx.to(self.keys.device)
        self.keys = self.keys.index_select(0, rows)
        self.values = self.values.index_select(0, rows)
        self.mask = None if self.mask is None else self.mask.index_select(0, rows)
        self.history = None if self.history is None else self.history.index_select(0, rows)

    def crop(self, tokens_to_remove: int) -> None:
        raise RuntimeError(_NOT_CROPPABLE)


class DeltaMemory(LinearAttentionCacheLayerMixin):
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


def adopt(cache: Cache, layer_types: list[str]) -> list[AttentionMemory | DeltaMemory]:
    """The layers of ``cache``, made ours if it is still empty.

    Raises TypeError for a cache of a fixed size and ValueError for one that another model has filled.
    """
    if len(cache.layers) == len(layer_types) and isinstance(cache.layers[0], (AttentionMemory, DeltaMemory)):
        return cache.layers
    if not isinstance(cache, DynamicCache):
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}; a hybrid keeps its past in a DynamicCache "
            "(leave cache_implementation unset)"
        )
    filled = any(layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin))
    if filled:
        raise ValueError("past_key_values was filled by another model")
    cache.layers[:] = [AttentionMemory() if kind == "full_attention" else DeltaMemory() for kind in layer_types]
    cache.layer_class_to_replicate = None
    return cache.layers
