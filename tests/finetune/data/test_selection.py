"""The mix never repeats a row, and a prompt never stands on both sides of the split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.selection import mix_sources, split_held_out
from hybrid_ft.finetune.recipe.data_section import HeldOut, Source


@settings(max_examples=200)
@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), st.floats(0.01, 0.99), st.integers(0, 3))
def test_a_prompt_is_on_one_side(prompts: list[int], fraction: float, seed: int) -> None:
    hashes = np.array(prompts, dtype=np.uint64)
    if len(set(prompts)) == 1:
        with pytest.raises(InputError, match="ask the same first"):
            split_held_out(hashes, HeldOut(fraction=fraction), seed)
        return
    out = split_held_out(hashes, HeldOut(fraction=fraction), seed)
    assert out.any() and not out.all()
    assert not set(hashes[out].tolist()) & set(hashes[~out].tolist())


@given(st.integers(1, 99), st.integers(0, 5))
@settings(max_examples=30)
def test_the_count_is_exact_where_prompts_differ(count: int, seed: int) -> None:
    assert split_held_out(np.arange(100, dtype=np.uint64), HeldOut(count=count), seed).sum() == count


def test_seeds_hold_out_different_rows() -> None:
    prompts = np.arange(1000, dtype=np.uint64)
    first, second = (set(np.flatnonzero(split_held_out(prompts, HeldOut(count=100), seed)).tolist()) for seed in (0, 1))
    assert len(first & second) < 40


def test_a_count_that_leaves_nothing() -> None:
    with pytest.raises(InputError, match=r"data.eval.count: 5 of 5 rows leaves none"):
        split_held_out(np.arange(5, dtype=np.uint64), HeldOut(count=5), 0)


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 9.0)), min_size=1, max_size=4), st.integers(0, 3))
@settings(max_examples=100)
def test_weights_are_shares_of_the_largest_mix(sources: list[tuple[int, float]], seed: int) -> None:
    source = np.repeat(np.arange(len(sources)), [rows for rows, _ in sources])
    recipes = [Source(path=f"{number}", weight=weight) for number, (_, weight) in enumerate(sources)]
    total_weight = sum(weight for _, weight in sources)
    largest = min(rows / (weight / total_weight) for rows, weight in sources)
    shares = [largest * weight / total_weight for _, weight in sources]
    if min(shares) < 0.999:
        with pytest.raises(InputError, match="leaves no row of"):
            mix_sources(source, recipes, seed)
        return
    rows = mix_sources(source, recipes, seed)
    assert len(set(rows.tolist())) == len(rows)
    counts = np.bincount(source[rows], minlength=len(sources))
    for count, share, (available, _) in zip(counts, shares, sources, strict=True):
        assert count <= available and abs(count - share) <= 1
    # some source is used up, or the mix could be larger
    assert any(count == available for count, (available, _) in zip(counts, sources, strict=True))


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 40), min_size=20, max_size=60), st.floats(0.5, 4)), min_size=2, max_size=4
    ),
    st.integers(0, 3),
)
@settings(max_examples=100)
def test_weights_by_tokens_are_shares_of_the_trained_tokens(sources: list[tuple[list[int], float]], seed: int) -> None:
    source = np.repeat(np.arange(len(sources)), [len(rows) for rows, _ in sources])
    trained = np.array([size for rows, _ in sources for size in rows])
    recipes = [Source(path=f"{number}", weight=weight) for number, (_, weight) in enumerate(sources)]
    total_weight = sum(weight for _, weight in sources)
    largest = min(sum(rows) / (weight / total_weight) for rows, weight in sources)
    try:
        rows = mix_sources(source, recipes, seed, trained=trained)
    except InputError as error:
        assert "leaves no row of" in str(error)
        assert min(largest * weight / total_weight for _, weight in sources) < 40
        return
    assert len(set(rows.tolist())) == len(rows)
    tokens = np.bincount(source[rows], trained[rows], minlength=len(sources))
    for found, (_, weight) in zip(tokens, sources, strict=True):
        wanted = largest * weight / total_weight
        assert wanted - 41 < found <= wanted + 1e-3
    assert any(found == sum(rows) for found, (rows, _) in zip(tokens, sources, strict=True))


def test_by_tokens_long_rows_are_fewer() -> None:
    source = np.repeat([0, 1], [1000, 1000])
    trained = np.repeat([10, 90], [1000, 1000])
    half = [Source(path="a", weight=1), Source(path="b", weight=1)]
    assert np.bincount(source[mix_sources(source, half, 0)]).tolist() == [1000, 1000]
    assert np.bincount(source[mix_sources(source, half, 0, trained=trained)]).tolist() == [1000, 111]


def test_repeat_is_the_one_way_to_a_row_twice() -> None:
    source = np.repeat([0, 1], [10, 40])
    rows = mix_sources(source, [Source(path="a", repeat=3), Source(path="b")], 0)
    assert rows.tolist() == sorted([*range(10)] * 3 + [*range(10, 50)])
    counted = mix_sources(source, [Source(path="a", count=4, repeat=2), Source(path="b")], 0)
    assert sorted(np.bincount(counted)[:10].tolist()) == [0] * 6 + [2] * 4
    # by weight, the repeated rows fill the mix: 30 and 30 in place of 10 and 10
    mixed = mix_sources(source, [Source(path="a", weight=1, repeat=3), Source(path="b", weight=1)], 0)
    assert np.bincount(source[mixed]).tolist() == [30, 30]
    assert np.bincount(mixed)[:10].tolist() == [3] * 10 and np.bincount(mixed)[10:].max() == 1


def test_count_is_a_seeded_sample() -> None:
    source = np.repeat([0, 1], [100, 50])
    recipes = [Source(path="a", count=10), Source(path="b")]
    rows = mix_sources(source, recipes, 0)
    assert (source[rows] == 0).sum() == 10 and (source[rows] == 1).sum() == 50
    assert rows.tolist() == mix_sources(source, recipes, 0).tolist() != mix_sources(source, recipes, 1).tolist()
    assert rows.tolist() == sorted(rows.tolist())
    with pytest.raises(InputError, match=r"b has 50 usable rows, count asks for 51"):
        mix_sources(source, [Source(path="a"), Source(path="b", count=51)], 0)
