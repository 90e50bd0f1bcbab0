"""What differs: two answers word by word, several runs' recipes key by key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import Any

from hybrid_ft.finetune.recipe.yaml_file import flow

LONGEST = 1200
"""Characters of an answer that are shown."""
_PARTS = re.compile(r"\s+|\w+|[^\w\s]")

Marked = list[tuple[bool, str]]
"""Runs of text, each with whether the other answer has it not."""


def marked(before: str, after: str) -> tuple[Marked, Marked]:
    """Both answers in runs, marked where they differ, each cut at LONGEST characters."""
    one, other = (_PARTS.findall(cut(text)) for text in (before, after))
    left: Marked = []
    right: Marked = []
    for kind, a, b, c, d in SequenceMatcher(a=one, b=other, autojunk=False).get_opcodes():
        for runs, parts in ((left, one[a:b]), (right, other[c:d])):
            if parts:
                runs.append((kind != "equal", "".join(parts)))
    return left, right


def cut(text: str, most: int = LONGEST) -> str:
    """The text, or its beginning and three dots."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def recipe_rows(recipes: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Keys whose values are not the same in all recipes, each with every recipe's value."""
    flat = [dict(_flat(recipe)) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    rows = [(key, [one.get(key, "not set") for one in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None or not value:
        return [(prefix, flow(value))]
    return [pair for key, inner in items for pair in _flat(inner, f"{prefix}.{key}" if prefix else str(key))]
