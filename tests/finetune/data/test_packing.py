"""Every row once, no pack over its budget, as few packs as may be expected."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.packing import empty_share, pack, padding_share


def naive(lengths: list[int], budget: int) -> int:
    """Best-fit decreasing by looking at every pack: the number of packs."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fits = [room for room in rooms if room >= length]
        if fits:
            rooms[rooms.index(min(fits))] -= length
        else:
            rooms.append(budget - length)
    return len(rooms)


@settings(max_examples=200)
@given(
    st.integers(1, 5000).flatmap(
        lambda budget: st.tuples(st.just(budget), st.lists(st.integers(1, budget), max_size=60), st.integers(0, 3))
    )
)
def test_every_row_once_within_the_budget(case: tuple[int, list[int], int]) -> None:
    budget, lengths, seed = case
    packs = pack(lengths, budget, seed)
    assert sorted(row for rows in packs for row in rows) == list(range(len(lengths)))
    assert all(0 < sum(lengths[row] for row in rows) <= budget for rows in packs)
    assert len(packs) == naive(lengths, budget)


def by_definition(lengths: np.ndarray, budget: int, seed: int) -> list[list[int]]:
    """Best-fit decreasing with every pack looked at: among those with the least room that suffices, the last that got
    there."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # room and pack, in the order in which the packs got it
    for row in order.tolist():
        size = int(lengths[row])
        fits = [room for room, _ in rooms if room >= size]
        if fits:
            at = max(index for index, (room, _) in enumerate(rooms) if room == min(fits))
            room, number = rooms.pop(at)
        else:
            room, number = budget, len(packs)
            packs.append([])
        packs[number].append(row)
        rooms.append((room - size, number))
    for rows in packs:
        random.shuffle(rows)
    return [packs[number] for number in random.permutation(len(packs)).tolist()]


@settings(max_examples=200)
@given(
    st.integers(1, 5000).flatmap(
        lambda budget: st.tuples(st.just(budget), st.lists(st.integers(1, budget), max_size=60), st.integers(0, 3))
    )
)
def test_the_packs_are_those_of_the_definition(case: tuple[int, list[int], int]) -> None:
    budget, lengths, seed = case
    assert pack(lengths, budget, seed) == by_definition(np.array(lengths, dtype=np.int64), budget, seed)


@pytest.mark.parametrize(("budget", "rows"), [(64, 600), (65_536, 600)])
def test_many_rows_are_packed_as_the_definition_says(budget: int, rows: int) -> None:
    lengths = np.random.default_rng(0).integers(1, budget, rows)
    assert pack(lengths, budget, 1) == by_definition(lengths, budget, 1)


def test_memory_grows_with_the_rows_and_not_with_the_budget() -> None:
    tracemalloc.start()
    assert sorted(map(sorted, pack([2**24, 5, 7], 2**24))) == [[0], [1, 2]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_the_seed_decides() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 500)
    assert pack(lengths, 256, 1) == pack(lengths, 256, 1)
    assert pack(lengths, 256, 1) != pack(lengths, 256, 2)


def test_long_rows_do_not_come_first() -> None:
    lengths = np.arange(1, 1001)
    longest = [lengths[rows].max() for rows in pack(lengths, 1000)]
    assert abs(np.corrcoef(np.arange(len(longest)), longest)[0, 1]) < 0.3


@pytest.mark.parametrize("lengths", [[5], [0, 1]])
def test_a_row_that_fits_no_pack(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        pack(lengths, 4)


def test_shares() -> None:
    assert empty_share([3, 5], [[0, 1]], 10) == pytest.approx(0.2)
    # batches of 2: (3, 5) is 10 wide for 8 tokens, (4) has no padding
    assert padding_share([3, 5, 4], 2) == pytest.approx(1 - 12 / 14)
    assert pack([], 8) == [] and padding_share([], 2) == 0.0
