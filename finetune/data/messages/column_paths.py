"""Values in a row by their path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MISSING = object()
"""What is not there."""


def found_at(values: Any, path: str) -> Any:
    """What lies at ``a.b.0``, a column of that very name first; MISSING where there is nothing."""
    if path in values:
        return values[path]
    found = values
    for part in path.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and len(part) < 10 and int(part) < len(found):
            found = found[int(part)]
        else:
            return MISSING
    return found


def at(values: Any, path: str) -> Any:
    """As ``found_at``, None where there is nothing."""
    found = found_at(values, path)
    return None if found is MISSING else found


def renamed_turns(turns: Any, role: str | None, content: str | None) -> Any:
    """A column of turns, with our names of their keys; of texts, which user and assistant say in turn, as turns."""
    if not isinstance(turns, list):
        return turns
    if turns and role is None and content is None and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)]
    return [_renamed_turn(turn, role, content) for turn in turns]


def _renamed_turn(turn: Any, role: str | None, content: str | None) -> Any:
    """A turn with its role and its text under our names; whatever else it has stays."""
    if not isinstance(turn, dict) or (role is None and content is None):
        return turn
    renamed = {"role": role or "role", "content": content or "content"}
    left = {key: value for key, value in turn.items() if key not in {path.split(".")[0] for path in renamed.values()}}
    found = {ours: found_at(turn, path) for ours, path in renamed.items()}
    return left | {ours: value for ours, value in found.items() if value is not MISSING}
