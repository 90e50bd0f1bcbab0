"""A curve in a terminal: braille dots, the last value and the ends."""

from __future__ import annotations

from collections.abc import Sequence

from hybrid_ft.finetune.reports.chart import shown

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a braille sign, the bits of its left and right column from the top."""
_LABEL = 9


def text_chart(title: str, xs: Sequence[float], ys: Sequence[float], width: int, height: int = 4) -> list[str]:
    """Lines of ``width`` signs: the title with the last value, then ``height`` lines of dots, with the greatest
    and the least value before the first and the last of them. Every value is within a dot of its place; no
    spike is left out."""
    columns = max(1, width - _LABEL - 1)
    cells = [[0] * columns for _ in range(height)]
    low, high, left, right = min(ys), max(ys), xs[0], xs[-1]
    levels = 4 * height - 1
    spans: dict[int, list[int]] = {}

    def mark(across: int, down: int) -> None:
        span = spans.setdefault(across, [down, down])
        span[:] = [min(span[0], down), max(span[1], down)]

    before: tuple[int, int] | None = None
    for x, y in zip(xs, ys, strict=True):
        across = round((x - left) / ((right - left) or 1) * (2 * columns - 1))
        down = levels - round((y - low) / ((high - low) or 1) * levels)
        # a line from the value before: level parts and steep ones are drawn whole
        first, last = before or (across, down)
        for place in range(first + 1, across):
            mark(place, round(last + (down - last) * (place - first) / (across - first)))
        if across - first <= 1 < abs(down - last):
            mark(across, last)
        mark(across, down)
        before = across, down
    for across, (top, bottom) in spans.items():
        for down in range(top, bottom + 1):
            cells[down // 4][across // 2] |= _DOTS[across % 2][down % 4]
    labels = {0: shown(high), height - 1: shown(low) if high > low else ""}
    lines = [f"{title} {shown(ys[-1])}"[:width]]
    for number, row in enumerate(cells):
        dots = "".join(chr(0x2800 + cell) for cell in row)
        lines.append(f"{labels.get(number, ''):>{_LABEL}} {dots}")
    return lines
