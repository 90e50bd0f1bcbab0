"""What differs: two answers word by word, several runs' recipes key by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from hybrid_ft.errors import masked
from hybrid_ft.finetune.recipe.yaml_file import flow

LONGEST = 1200
"""Characters of an answer that are shown."""
_MOST_PAIRS = 60_000
"""Pairs of words that are compared at most: a hundredth of a second."""
_PARTS = re.compile(r"\s+|\w+|[^\w\s]")

Marked = list[tuple[bool, str]]
"""Runs of text, each with whether the other answer has it not."""


@lru_cache(maxsize=4096)
def marked(before: str, after: str) -> tuple[Marked, Marked]:
    """Both answers in runs, marked where they differ, each cut at LONGEST characters.

    By the longest common subsequence of their words; where that is too much to work out, all between the first and the
    last word that differ is marked.
    """
    one, other = (_PARTS.findall(cut(text)) for text in (before, after))
    begin = _common(one, other)
    end = _common(one[begin:][::-1], other[begin:][::-1])
    middles = one[begin : len(one) - end], other[begin : len(other) - end]
    same = _in_both(*middles) if len(middles[0]) * len(middles[1]) <= _MOST_PAIRS else [set(), set()]
    sides = []
    for parts, middle, kept in zip((one, other), middles, same, strict=True):
        differs = [False] * begin + [place not in kept for place in range(len(middle))] + [False] * end
        pairs = zip(differs, parts, strict=True)
        sides.append(
            [(flag, "".join(part for _, part in group)) for flag, group in groupby(pairs, key=lambda pair: pair[0])]
        )
    return sides[0], sides[1]


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two answers begin with alike."""
    return next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))


def _in_both(one: list[str], other: list[str]) -> list[set[int]]:
    """The places of a longest common subsequence, in each."""
    best = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for a in range(len(one) - 1, -1, -1):
        row, below = best[a], best[a + 1]
        for b in range(len(other) - 1, -1, -1):
            row[b] = below[b + 1] + 1 if one[a] == other[b] else max(below[b], row[b + 1])
    places: list[set[int]] = [set(), set()]
    a = b = 0
    while a < len(one) and b < len(other):
        if one[a] == other[b]:
            places[0].add(a)
            places[1].add(b)
            a, b = a + 1, b + 1
        elif best[a + 1][b] >= best[a][b + 1]:
            a += 1
        else:
            b += 1
    return places


def cut(text: str, most: int = LONGEST) -> str:
    """The text, or its beginning and three dots. Secrets are masked before a cut may leave half of one, which nothing
    knows."""
    text = masked(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def ends(text: str, most: int = LONGEST) -> str:
    """The same with the end of a longer text: after a passage comes what is asked of it."""
    text = masked(text)
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}\n…\n{text[-half:]}"


def recipe_rows(recipes: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all recipes, each with every recipe's value."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key, "not set") for one in flat]) for key in keys]
    # null is as good as not set: a section that one of them has brings a row for each of its defaults
    return [(key, values) for key, values in rows if len(set(values)) > 1 and not set(values) <= {"null", "not set"}]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return [(prefix, flow(value))]
    return [pair for key, inner in items for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
