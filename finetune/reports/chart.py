"""Curves as lines of an inline SVG: places of points, ticks, labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 10, 8, 22
_TICKS = 5


@dataclass(frozen=True)
class Curve:
    """One line of a chart: ``points`` as SVG has them; ``dots`` for a few values, each with what it says."""

    name: str
    colour: int
    points: str
    dots: list[tuple[float, float, str]]
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart, in the SVG's own units. Ticks are places with their labels. ``scale``: left and right places and the
    steps there, bottom and top places and the values there."""

    title: str
    curves: list[Curve]
    across: list[tuple[float, str]]
    up: list[tuple[float, str]]
    scale: tuple[float, ...]

    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    bottom: int = HEIGHT - _BOTTOM


def chart(
    title: str, series: Sequence[tuple[str, int, Sequence[float], Sequence[float]]], dotted: bool = False
) -> Chart | None:
    """Curves of (name, colour, x, y) over one another, None where none has a point. ``dotted``:
    each value is marked."""
    series = [one for one in series if one[2]]
    if not series:
        return None
    xs = [x for _, _, some, _ in series for x in some]
    ys = [y for _, _, _, some in series for y in some]
    left, right = min(xs), max(xs)
    across = _ticks(left, right, 1)
    # a value that never changes stands above 0 and not at the edge
    up = _ticks(min(ys), max(ys))
    if len({shown(y) for y in up}) < max(2, len(up)):  # nor one that changes by less than its labels can say
        up = _ticks(min(ys[0], 0.0), max(ys[0], 0.0))
    low, high = min(up[0], min(ys)), max(up[-1], max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        # fine enough to read a value back to four digits of its axis
        return (
            round(_LEFT + (x - left) / ((right - left) or 1) * (WIDTH - _LEFT - _RIGHT), 2),
            round(HEIGHT - _BOTTOM - (y - low) / ((high - low) or 1) * (HEIGHT - _TOP - _BOTTOM), 2),
        )

    columns = max(60, 400 // len(series))
    curves = []
    for name, colour, some_xs, some_ys in series:
        kept = _thinned(some_xs, some_ys, columns)
        points = " ".join(f"{a:g},{b:g}" for a, b in (at(x, y) for x, y in kept))
        alone = dotted or len(some_xs) == 1
        dots = [(*at(x, y), f"{name}: step {x:g}: {shown(y)}") for x, y in kept] if alone and len(kept) <= 120 else []
        curves.append(Curve(name, colour, points, dots, shown(some_ys[-1])))
    return Chart(
        title,
        curves,
        [(at(x, low)[0], shown(x)) for x in across if left <= x <= right],
        [(at(left, y)[1], shown(y)) for y in up if low <= y <= high],
        (_LEFT, WIDTH - _RIGHT, left, right, HEIGHT - _BOTTOM, _TOP, low, high),
    )


def _thinned(xs: Sequence[float], ys: Sequence[float], columns: int) -> list[tuple[float, float]]:
    """Of each column of pixels the least and the greatest value, in their order, so that no spike is lost."""
    if len(xs) <= 2 * columns:
        return list(zip(xs, ys, strict=True))
    kept = []
    for column in range(columns):
        part = range(column * len(xs) // columns, (column + 1) * len(xs) // columns)
        ends = sorted({min(part, key=ys.__getitem__), max(part, key=ys.__getitem__)})
        kept += [(xs[place], ys[place]) for place in ends]
    return kept


def _ticks(low: float, high: float, least: float = 0.0) -> list[float]:
    """A few round numbers that enclose the values, or nearly, at least ``least`` apart: there is no half of a step."""
    if high <= low:
        return [low]
    rough = (high - low) / _TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = max(least, unit * next(times for times in (1, 2, 5, 10) if times * unit >= rough))
    first = math.floor(low / step)
    return [number * step for number in range(first, math.ceil(high / step) + 1)]


def shown(value: float) -> str:
    """Four digits, with k, M and G for large numbers."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "")):
        if size >= unit:
            return f"{value / unit:.4g}{name}" if name else f"{value / 1e3:.4g}k"
    return f"{value:.4g}"
