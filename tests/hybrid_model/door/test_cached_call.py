"""Calls with a cache: each row counts its own history, whatever columns the batch leaves empty in it."""

import pytest
import torch

from hybrid_ft.hybrid_model.door.cache import AttentionCache
from hybrid_ft.hybrid_model.door.cached_call import CachedCall, first_call, later_call, step_call
from hybrid_ft.hybrid_model.door.layout import open_door

CPU = torch.device("cpu")
NOTHING: dict[str, torch.Tensor | None] = {"position_ids": None}
FIRST = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
NEW = torch.tensor([[1, 1], [0, 1], [1, 1]])


def past(mask: torch.Tensor | None = FIRST) -> AttentionCache:
    """What a first call of these columns leaves behind."""
    shape = FIRST.shape if mask is None else mask.shape
    call = first_call(open_door(tuple(shape), CPU, attention_mask=mask), CPU)
    cache = AttentionCache()
    cache.update(*torch.zeros(2, shape[0], 1, shape[1], 2))
    cache.mask, cache.history = call.mask, call.history
    return cache


def places(call: CachedCall, mask: torch.Tensor) -> list[list[int]]:
    """The positions of each row's new tokens."""
    counts = mask.sum(1).tolist()
    return [row.tolist() for row in call.positions().split(counts)]


def test_the_first_call_remembers_what_is_padding() -> None:
    cache = past()
    assert cache.mask is not None and torch.equal(cache.mask, FIRST.bool())
    assert cache.history is not None and cache.history.tolist() == [3, 4, 1]
    assert past(None).mask is None


def test_a_later_call_counts_on_from_each_rows_own_tokens() -> None:
    call = later_call(past(), (3, 2), CPU, torch.cat((FIRST, NEW), dim=1), NOTHING)
    assert places(call, NEW) == [[3, 4], [4], [1, 2]]
    assert call.history.tolist() == [5, 5, 3]
    assert call.mask is not None and torch.equal(call.mask, torch.cat((FIRST, NEW), dim=1).bool())


def test_a_step_adds_one_token_to_each_row_and_hides_the_padding_from_it() -> None:
    whole = torch.cat((FIRST, torch.ones(3, 1, dtype=torch.long)), dim=1)
    call = step_call(past(), 3, whole)
    assert call is not None and call.door is None
    assert call.positions().tolist() == [3, 4, 1] and call.history.tolist() == [4, 5, 2]
    assert call.bias is not None and call.bias.shape == (3, 1, 1, 5)
    assert torch.equal(call.bias[:, 0, 0] == 0, whole.bool()) and bool(
        (call.bias[:, 0, 0][whole == 0] == -torch.inf).all()
    )
    plain = step_call(past(None), 3, None)
    assert plain is not None and plain.mask is None and plain.bias is None


def test_a_step_of_which_one_row_is_padding_is_none() -> None:
    whole = torch.cat((FIRST, torch.tensor([[1], [0], [1]])), dim=1)
    assert step_call(past(), 3, whole) is None


def test_what_does_not_fit_the_past_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 3 rows and the batch 2; they must be the same rows"):
        step_call(past(), 2, None)
    with pytest.raises(
        ValueError, match=r"is \(3, 2\); with 4 columns in the cache and 2 new ones it must be \(3, 6\)"
    ):
        later_call(past(), (3, 2), CPU, NEW, NOTHING)
    with pytest.raises(ValueError, match="must be the 2-D mask"):
        later_call(past(), (3, 2), CPU, NEW[:, None, None], NOTHING)
    with pytest.raises(ValueError, match="packed rows cannot continue a cache"):
        later_call(past(None), (3, 2), CPU, None, {"position_ids": torch.zeros(3, 2, dtype=torch.long)})


def test_on_another_device_it_is_the_same() -> None:
    call = later_call(past(), (3, 2), CPU, torch.cat((FIRST, NEW), dim=1), NOTHING)
    moved = call.to("meta")
    assert {x.device.type for x in (moved.history, moved.mask) if x is not None} == {"meta"}
    assert torch.equal(call.to("cpu").positions(), call.positions())
