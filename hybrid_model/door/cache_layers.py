"""Our layers in the cache that a caller holds, growing or static."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticCache, StaticLayer

from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache
from hybrid_ft.hybrid_model.door.static_cache import StaticAttentionCache, StaticDeltaCache


def use_our_layers(cache: Cache, layer_types: Sequence[str]) -> list[AttentionCache | DeltaCache]:
    """The layers of ``cache``, made ours if it is still empty.

    Raises TypeError for another kind of cache and ValueError for one that offloads, and for one that another model has
    filled or was made for.
    """
    if len(cache.layers) == len(layer_types) and isinstance(cache.layers[0], (AttentionCache, DeltaCache)):
        return cache.layers
    if not isinstance(cache, (DynamicCache, StaticCache)):
        raise TypeError(
            f"past_key_values is a {type(cache).__name__}; a hybrid keeps its past in a DynamicCache or a StaticCache "
            "(leave cache_implementation unset, or say static)"
        )
    if getattr(cache, "offloading", False):
        raise ValueError(
            "past_key_values would be offloaded; a hybrid's keys, values and states stay on their device (leave "
            "cache_implementation unset, or say static)"
        )
    if any(layer.get_seq_length() for layer in cache.layers if isinstance(layer, CacheLayerMixin)):
        raise ValueError("past_key_values was filled by another model")
    attends = [kind == "full_attention" for kind in layer_types]
    if isinstance(cache, DynamicCache):
        cache.layers[:] = [AttentionCache() if here else DeltaCache() for here in attends]
        cache.layer_class_to_replicate = None
        return cache.layers
    if attends != [isinstance(layer, StaticLayer) for layer in cache.layers]:
        raise ValueError("past_key_values is a StaticCache of another model's config; make it with this model's")
    cache.layers[:] = [
        StaticAttentionCache(layer.max_cache_len) if here else StaticDeltaCache()
        for layer, here in zip(cache.layers, attends)
    ]
    return cache.layers
