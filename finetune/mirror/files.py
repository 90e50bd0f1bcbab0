"""The names of what a mirror holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybrid_ft.finetune.runs.checkpoints import MANIFEST, STATE

HOLDER = "mirror.json"
"""In the place: which run it belongs to, and which start of it copies."""
RECORD = "run.json"
CHECKPOINTS = "checkpoints"
RESULTS = ("adapter", "merged", "model")


def manifest_of(result: str) -> str:
    """The file in the place that lists a result's files; it is written after them."""
    return f"{result}.{MANIFEST}"


def record_of(content: bytes | None) -> dict[str, Any] | None:
    """A JSON object, or None for what is none."""
    try:
        value = json.loads(content or b"")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def saved_steps(names: Iterable[str]) -> list[int]:
    """Steps of the checkpoints whose manifest is there, the newest first; names are relative to the place."""
    found = []
    for name in names:
        parts = name.split("/")
        if len(parts) == 3 and parts[0] == CHECKPOINTS and parts[2] == MANIFEST:
            step = parts[1].removeprefix("checkpoint-")
            if step.isdecimal():
                found.append(int(step))
    return sorted(found, reverse=True)


def best_step(checkpoint: Path) -> int | None:
    """The step whose checkpoint was the best so far when this one was saved, where the run looks for one."""
    state = checkpoint / STATE
    best = (record_of(state.read_bytes()) or {}).get("best_global_step") if state.is_file() else None
    return best if isinstance(best, int) else None


def small_files(folder: Path) -> list[str]:
    """Names of a run folder's files that are neither checkpoints nor results nor hidden; its record is the last."""
    found = []
    for place, folders, names in os.walk(folder):
        above = Path(place).relative_to(folder)
        out = (CHECKPOINTS, *RESULTS) if above == Path() else ()
        folders[:] = sorted(name for name in folders if name not in out and _plain(place, name))
        found += [(above / name).as_posix() for name in names if _plain(place, name)]
    return sorted(found, key=lambda name: (name == RECORD, name))


def _plain(place: str, name: str) -> bool:
    return not name.startswith((".", "replaced-")) and not os.path.islink(os.path.join(place, name))
