"""The growing cache's two kinds of layers, beside plain lists of what was put in."""

import pytest
import torch

from hybrid_ft.hybrid_model.door.cache import AttentionCache, DeltaCache


def tokens(rows: int, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, rows, 3, count, 4, generator=generator)
    return keys, values


def filled() -> tuple[AttentionCache, torch.Tensor, torch.Tensor]:
    """70 and then 1 and 90 columns: its memory grows twice."""
    cache = AttentionCache()
    parts = [tokens(4, count, seed) for seed, count in enumerate((70, 1, 90))]
    for keys, values in parts:
        got = cache.update(keys, values)
    cache.history, cache.mask = torch.arange(4), torch.arange(4)[:, None] >= torch.zeros(161)
    whole = [torch.cat(kind, dim=2) for kind in zip(*parts, strict=True)]
    assert torch.equal(got[0], whole[0]) and torch.equal(got[1], whole[1])
    return cache, whole[0], whole[1]


def test_what_is_put_in_comes_out_whole_however_often_the_memory_grows() -> None:
    cache, keys, values = filled()
    assert cache.keys is not None and torch.equal(cache.keys, keys)
    assert cache.values is not None and torch.equal(cache.values, values)
    assert cache.get_seq_length() == 161 and cache.get_mask_sizes(5) == (166, 0)


def test_columns_within_the_room_are_written_in_place() -> None:
    cache = AttentionCache()
    cache.update(*tokens(2, 5, 0))
    assert cache.keys is not None
    place = cache.keys.data_ptr()
    cache.update(*tokens(2, 30, 1))
    assert cache.keys.data_ptr() == place


def test_gradients_do_not_reach_the_past() -> None:
    cache = AttentionCache()
    keys, values = tokens(1, 2, 0)
    kept, _ = cache.update(keys.requires_grad_(), values)
    assert not kept.requires_grad


@pytest.mark.parametrize("how", ["reorder", "select", "select by mask", "repeat"])
def test_rows_are_chosen_in_all_that_is_kept(how: str) -> None:
    cache, keys, values = filled()
    delta = DeltaCache()
    tail, state = torch.arange(4.0)[:, None, None].expand(4, 3, 2), torch.arange(4.0)[:, None].expand(4, 5)
    delta.store(tail, state)
    wanted = {"reorder": [2, 2, 0, 1], "select": [3, 0], "select by mask": [1, 3], "repeat": [0, 0, 1, 1, 2, 2, 3, 3]}
    rows = torch.tensor(wanted[how])
    for one in (cache, delta):
        if how == "reorder":
            one.reorder_cache(rows)
        elif how == "repeat":
            one.batch_repeat_interleave(2)
        else:
            one.batch_select_indices(rows if how == "select" else torch.tensor([False, True, False, True]))
    assert cache.keys is not None and torch.equal(cache.keys, keys[rows])
    assert cache.values is not None and torch.equal(cache.values, values[rows])
    assert cache.history is not None and cache.history.tolist() == rows.tolist()
    assert cache.mask is not None and len(cache.mask) == len(rows)
    assert delta.tail is not None and torch.equal(delta.tail, tail[rows])
    assert delta.state is not None and torch.equal(delta.state, state[rows])


@pytest.mark.parametrize("padded", [False, True])
def test_rows_of_others_come_below(padded: bool) -> None:
    """Keys, values, masks (also where one has none), histories and states; and all go on growing together."""
    caches, deltas, parts = [], [], []
    for number, rows in enumerate((2, 3, 1)):
        cache, delta = AttentionCache(), DeltaCache()
        parts.append(tokens(rows, 5, number))
        cache.update(*parts[-1])
        cache.history = torch.full((rows,), 5 - number)
        cache.mask = torch.arange(5).expand(rows, 5) >= number if padded and number else None
        delta.store(torch.full((rows, 3, 2), float(number)), torch.full((rows, 5), float(number)))
        caches.append(cache)
        deltas.append(delta)
    caches[0].add_rows(caches[1:])
    deltas[0].add_rows(deltas[1:])
    new = tokens(6, 70, 9)
    keys, values = caches[0].update(*new)
    assert torch.equal(keys, torch.cat((torch.cat([part[0] for part in parts]), new[0]), dim=2))
    assert torch.equal(values, torch.cat((torch.cat([part[1] for part in parts]), new[1]), dim=2))
    assert caches[0].history is not None and caches[0].history.tolist() == [5, 5, 4, 4, 4, 3]
    mask = caches[0].mask
    assert (mask is not None and mask.sum(1).tolist() == [5, 5, 4, 4, 4, 3]) if padded else mask is None
    assert deltas[0].tail is not None and deltas[0].tail[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 2]
    assert deltas[0].state is not None and deltas[0].state[:, 0].tolist() == [0, 0, 1, 1, 1, 2]


def test_an_empty_cache_has_no_rows_to_choose() -> None:
    for one in (AttentionCache(), DeltaCache()):
        one.batch_select_indices(torch.tensor([0]))
        one.batch_repeat_interleave(3)
    assert DeltaCache().tail is None and DeltaCache().state is None


def test_a_reset_begins_again_and_nothing_is_rolled_back() -> None:
    cache, _, _ = filled()
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        cache.crop(1)
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        DeltaCache().crop(1)
    cache.reset()
    keys, values = tokens(2, 3, 7)
    got, _ = cache.update(keys, values)
    assert torch.equal(got, keys) and cache.mask is None and cache.get_seq_length() == 3
