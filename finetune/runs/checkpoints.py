"""Folders that are either whole or absent, whatever moment the process dies.

A folder is filled under another name, listed with sizes and sha256 in ``manifest.json``, synced, and renamed to its
name; only then do older ones go. Nothing that bears its final name is ever written to again. A rename is the commit,
and the manifest says whether what was committed is still what lies there.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path

from hybrid_ft.finetune.runs.atomic import publish, remove, sha256

MANIFEST = "manifest.json"
STAGING = ".staging"
STATE = "trainer_state.json"
"""In a checkpoint: what transformers' loop knows of the run."""


def commit(staged: Path, final: Path, beat: Callable[[], None] = lambda: None) -> None:
    """Turn a filled folder into ``final``, with its manifest, so that a crash of the machine leaves one or the other.

    ``beat`` is called after every file that was hashed or synced, for a watchdog.
    """
    files = sorted(path for path in staged.rglob("*") if path.is_file() and path.name != MANIFEST)
    sums = sha256(files, beat)
    listed = {
        path.relative_to(staged).as_posix(): {"size": path.stat().st_size, "sha256": sums[path]} for path in files
    }
    (staged / MANIFEST).write_text(json.dumps(listed, indent=1), encoding="utf-8")
    publish(staged, final, beat)


def fault(folder: Path) -> str | None:
    """What is wrong with a committed folder, or None: every file of the manifest is there and has its sha256."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {folder / name: (entry["size"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    for path, (size, _) in expected.items():
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
    sums = sha256(list(expected))
    changed = [path.name for path, (_, sha256) in expected.items() if sums[path] != sha256]
    return f"{changed[0]} is damaged: its sha256 is not the one it was saved with" if changed else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def committed(checkpoints: Path) -> list[Path]:
    """The folders ``checkpoint-N``, oldest step first."""
    found = [path for path in checkpoints.glob("checkpoint-*") if path.is_dir() and path.name[11:].isdecimal()]
    return sorted(found, key=step_of)


def newest(checkpoints: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; each bad one met on the way is set aside under a unique name and named.

    Left-overs of a save or a removal that was cut short are deleted: they never had a checkpoint's name.
    """
    for leftover in [checkpoints / STAGING, *checkpoints.glob(".removing-*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    for checkpoint in reversed(committed(checkpoints)):
        wrong = fault(checkpoint)
        if wrong is None:
            return checkpoint
        aside = checkpoint.with_name(f"damaged-{checkpoint.name}-{time.time_ns()}")
        os.rename(checkpoint, aside)
        say(f"{checkpoint.name}: {wrong}; set aside as {aside.name}, going back to an older one")
    return None


def rotate(checkpoints: Path, keep: int, spared: Container[int | None] = ()) -> None:
    """Remove all but the ``keep`` checkpoints of the highest steps and those of the steps in ``spared``. One that
    cannot be removed now is tried again with the next: the new one is there, and no reason to end a run."""
    for checkpoint in committed(checkpoints)[:-keep]:
        if step_of(checkpoint) not in spared:
            with suppress(OSError):
                remove(checkpoint)
