"""Intervals: published numbers, promised coverage, and small samples."""

import math

import numpy as np
import pytest

from hybrid_ft.finetune.evaluation import statistics


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (358, 360, 0.980, 0.998),
        (353, 360, 0.960, 0.991),
        (304, 360, 0.803, 0.878),
        (0, 20, 0.0, 0.1611),
        (5, 5, 0.5655, 1.0),
    ],
)
def test_wilson(right: int, of: int, low: float, high: float) -> None:
    found = statistics.share([1.0] * right + [0.0] * (of - right))
    assert found.value == right / of
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)


def test_the_paired_interval_is_bonett_and_price_s() -> None:
    """20 items gained and 6 lost of 100: p12 = 21/102, p21 = 7/102."""
    before = [0.0] * 20 + [1.0] * 6 + [1.0] * 74
    after = [1.0] * 20 + [0.0] * 6 + [1.0] * 74
    found = statistics.difference(before, after)
    centre = 14 / 102
    half = 1.959964 * math.sqrt((28 / 102 - centre**2) / 102)
    assert found.value == pytest.approx(0.14)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert found.settled


@pytest.mark.parametrize(("gained", "settled"), [(5, False), (6, True)])
def test_it_settles_what_an_exact_test_does(gained: int, settled: bool) -> None:
    """McNemar's exact p of 5 items against none is 0.06, of 6 it is 0.03."""
    assert statistics.difference([0.0] * 100, [1.0] * gained + [0.0] * (100 - gained)).settled is settled


def test_nothing_changed_is_not_certainty() -> None:
    found = statistics.difference([1.0] * 300, [1.0] * 300)
    assert not found.settled and found.value == 0
    assert 0.005 < found.most < 0.012  # about the rule of three


@pytest.mark.parametrize(
    ("items", "before", "flips", "gain"),
    [(40, 0.5, 0.3, 0.1), (100, 0.9, 0.05, 0.02), (360, 0.85, 0.15, 0.0), (1273, 0.45, 0.15, 0.03)],
)
def test_coverage_of_the_paired_interval(items: int, before: float, flips: float, gain: float) -> None:
    """Of 1,500 simulated evaluations the true difference lies inside in 95 %, whatever the share that flips."""
    chance = np.random.default_rng(items)
    up, down = (flips + gain) / 2, (flips - gain) / 2
    chosen = chance.multinomial(items, [up, down, 1 - up - down], size=1500)
    inside = 0
    for gained, lost, same in chosen.tolist():
        was = [0.0] * gained + [1.0] * lost + [1.0] * same
        now = [1.0] * gained + [0.0] * lost + [1.0] * same
        found = statistics.difference(was, now)
        inside += found.low <= gain <= found.high
    assert 0.935 < inside / 1500


def test_coverage_of_wilson() -> None:
    chance = np.random.default_rng(1)
    for items, truth in ((20, 0.1), (164, 0.9), (360, 0.99)):
        found = [
            statistics.share([1.0] * right + [0.0] * (items - right))
            for right in chance.binomial(items, truth, size=1500).tolist()
        ]
        assert 0.92 < sum(one.low <= truth <= one.high for one in found) / 1500 <= 0.985


def test_coverage_of_wilson_on_average() -> None:
    """Exactly, over shares from 2 to 98 %: of a count of right answers the interval moves with the
    share that is true."""
    for items in (20, 100, 360):
        found = [statistics.share([1.0] * right + [0.0] * (items - right)) for right in range(items + 1)]
        covered = []
        for truth in np.linspace(0.02, 0.98, 97):
            chances = [
                math.comb(items, right) * truth**right * (1 - truth) ** (items - right) for right in range(items + 1)
            ]
            covered.append(sum(p for p, one in zip(chances, found, strict=True) if one.low <= truth <= one.high))
        assert 0.949 < np.mean(covered) < 0.955


def test_clusters_count_as_what_they_are() -> None:
    """30 templates whose ten items share their difference: taken for 300 items the interval misses far too often."""
    chance = np.random.default_rng(2)
    clusters = [number // 10 for number in range(300)]
    covered = {True: 0, False: 0}
    for _ in range(400):
        effect = chance.normal(0.05, 0.2, size=30).repeat(10) + chance.normal(0, 0.05, size=300)
        was, now = np.zeros(300).tolist(), np.clip(effect, -1, 1).tolist()
        for clustered in (True, False):
            found = statistics.difference(was, now, bounded=False, clusters=clusters if clustered else None)
            covered[clustered] += found.low <= 0.05 <= found.high
    assert covered[True] / 400 > 0.92
    assert covered[False] / 400 < 0.75


def test_a_cluster_of_each_item_is_no_cluster() -> None:
    scores = [1.0] * 130 + [0.0] * 70
    alone = statistics.share(scores, clusters=list(range(200)))
    plain = statistics.share(scores)
    assert (alone.low, alone.high) == pytest.approx((plain.low, plain.high), abs=2e-3)
    paired = statistics.share(scores, clusters=[number // 2 for number in range(200)])
    assert paired.high - paired.low > 1.3 * (plain.high - plain.low)


def test_a_loss_per_token_weighs_rows_by_their_tokens() -> None:
    found = statistics.mean([1.0, 3.0], [30.0, 10.0])
    assert found.value == 1.5
    change = statistics.difference([1.0, 3.0], [0.5, 3.0], bounded=False, weights=[30.0, 10.0])
    assert change.value == pytest.approx(-0.375)


def test_students_quantile() -> None:
    for freedom, quantile in ((3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)):
        assert statistics._student(freedom) == pytest.approx(quantile, rel=0.012)


def test_items_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="2 items before and 1 after"):
        statistics.difference([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="at least one item"):
        statistics.share([])
