"""Files of a run or an evaluation: texts, objects, lines. Imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError

Lines = list[dict[str, Any]]


def read_text(path: Path) -> str:
    """Raises InputError for what cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None


def read_object(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises InputError for anything else."""
    try:
        value = json.loads(read_text(path))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{path}: is damaged; it must hold a JSON object")
    return value


def read_lines(path: Path) -> Lines:
    """Objects of a file of lines, nothing where there is none; what is no object, as the cut end of a
    file, is left out."""
    found = []
    for line in read_text(path).splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
