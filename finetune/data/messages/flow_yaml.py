"""Keys to set, as YAML has them on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_YAML_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def flow(mapping: Mapping[str, str | int]) -> str:
    """A mapping of texts and whole numbers."""
    values = ((key, value if isinstance(value, int) else scalar(value)) for key, value in mapping.items())
    return "{" + ", ".join(f"{scalar(key)}: {value}" for key, value in values) + "}"


def scalar(text: str) -> str:
    """A text, in quotes where YAML would take it for something else."""
    if _PLAIN.fullmatch(text) and text.lower() not in _YAML_WORDS:
        return text
    return "'" + text.replace("'", "''") + "'" if text.isprintable() else json.dumps(text)
