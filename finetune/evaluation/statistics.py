"""Intervals of scores, and of paired differences of two models.

    share       Wilson's score interval. A score between 0 and 1 varies at most as a share of its mean does.
    mean        sum(w x) / sum(w) with the normal interval of its linearised error, for what has no bounds, as a loss
    difference  paired, item by item: the same estimate of d = after - before. Scores between 0 and 1 get two items
                more, of d = +1 and d = -1: Bonett and Price's interval (2012), which for a share holds its coverage
                where few items, or none, have changed.

Items that are not independent, of one passage or one template, are given as clusters: their errors add up before they
are squared, with Student's t of the number of clusters (Miller, 2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and its ends at ``LEVEL``."""

    value: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether 0 lies outside: of a difference, whether there is one."""
        return self.low > 0 or self.high < 0

    @property
    def most(self) -> float:
        """The largest size that the interval allows."""
        return max(abs(self.low), abs(self.high))


def share(scores: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Interval:
    """Wilson's interval of the mean of scores between 0 and 1, [items]. Raises ValueError where there are none."""
    count = len(scores)
    if not count:
        raise ValueError("an interval needs at least one item")
    mean = math.fsum(scores) / count
    size, z = float(count), _normal()
    if clusters is not None and 0 < mean < 1:
        errors, groups = _errors([score - mean for score in scores], [1.0] * count, clusters)
        z = _student(groups - 1)
        if errors:
            # as many independent items as would err as much; never more than there are
            size = min(size, mean * (1 - mean) * count**2 / errors)
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(mean * (1 - mean) / size + z * z / (4 * size * size))
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def mean(
    values: Sequence[float], weights: Sequence[float] | None = None, clusters: Sequence[Hashable] | None = None
) -> Interval:
    """The weighted mean of values without bounds, [items]; one item alone has no interval (infinite)."""
    if not values:
        raise ValueError("an interval needs at least one item")
    return _estimate(list(values), list(weights or [1.0] * len(values)), clusters)


def difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    bounded: bool = True,
    weights: Sequence[float] | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Interval:
    """after - before on the same items, [items] each. ``bounded``: scores between 0 and 1. Raises ValueError for lists
    of different lengths."""
    if len(before) != len(after) or not before:
        raise ValueError(
            f"{len(before)} items before and {len(after)} after; they must be the same items, at least one"
        )
    changes = [now - was for was, now in zip(before, after, strict=True)]
    if not bounded:
        return _estimate(changes, list(weights or [1.0] * len(changes)), clusters)
    value = math.fsum(changes) / len(changes)
    groups = None if clusters is None else [*clusters, _Pseudo(0), _Pseudo(1)]
    near = _estimate([*changes, 1.0, -1.0], [1.0] * (len(changes) + 2), groups)
    return Interval(value, max(-1.0, min(value, near.low)), min(1.0, max(value, near.high)))


@dataclass(frozen=True)
class _Pseudo:
    """A cluster that no item of a task is in."""

    number: int


def _estimate(values: list[float], weights: list[float], clusters: Sequence[Hashable] | None) -> Interval:
    whole = math.fsum(weights)
    middle = math.fsum(w * x for w, x in zip(weights, values, strict=True)) / whole
    errors, groups = _errors([x - middle for x in values], weights, clusters)
    if groups < 2:
        return Interval(middle, -math.inf, math.inf)
    if clusters is None:
        half = _normal() * math.sqrt(errors) / whole
    else:
        half = _student(groups - 1) * math.sqrt(errors * groups / (groups - 1)) / whole
    return Interval(middle, middle - half, middle + half)


def _errors(residuals: list[float], weights: Sequence[float], clusters: Sequence[Hashable] | None) -> tuple[float, int]:
    """The sum of squares of each cluster's weighted residuals, and how many clusters there are."""
    names = range(len(residuals)) if clusters is None else clusters
    sums: dict[Hashable, float] = {}
    for name, residual, weight in zip(names, residuals, weights, strict=True):
        sums[name] = sums.get(name, 0.0) + weight * residual
    return math.fsum(total * total for total in sums.values()), len(sums)


def _normal() -> float:
    return NormalDist().inv_cdf((1 + LEVEL) / 2)


def _student(freedom: int) -> float:
    """Student's quantile at LEVEL by its expansion about the normal one; within 1 % from 3 degrees of freedom on."""
    if freedom <= 2:
        return {1: 12.706, 2: 4.303}.get(freedom, math.inf)
    z, v = _normal(), float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
