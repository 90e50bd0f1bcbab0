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
