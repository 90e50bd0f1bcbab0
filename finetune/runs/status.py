"""What became of a run, for a supervisor that lost its exit status."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_ft.errors import NUMERICS, RESUMABLE, InputError
from hybrid_ft.finetune.runs.mirror_account import account, behind

_RUN, _STAGES = "run.json", "pipeline.json"


@dataclass(frozen=True)
class Status:
    """``code``: 0 finished, 75 the same command goes on (also where only the mirror lacks something), 4 a number was
    not finite and the same command fails again."""

    code: int
    text: str


def status(folder: Path) -> Status:
    """Of a run's folder, or of the stages of ``hybrid-ft run``; the last one that was begun speaks for them.

    Reads JSON and names of files alone. Raises InputError for a folder that holds neither, or a damaged record.
    """
    if (folder / _STAGES).is_file():
        return _of_stages(folder)
    if not (folder / _RUN).is_file():
        raise InputError(f"{folder}: must be a run's folder, with {_RUN} or {_STAGES}; name the recipe's output")
    return _of_run(folder)


def _of_run(folder: Path) -> Status:
    record = _record(folder / _RUN)
    finished = record.get("finished")
    if finished:
        step = finished.get("step") if isinstance(finished, dict) else None
        done = f"{folder}: finished" + (f" at step {step}" if step is not None else "")
        lacks = _mirror_lacks(folder, step or 0, True)
        return Status(RESUMABLE, f"{done}{lacks}; the same command goes on copying") if lacks else Status(0, done)
    saved = max(_numbers(folder / "checkpoints", r"checkpoint-(\d+)"), default=0)
    at = (f"the last save is step {saved}" if saved else "nothing saved yet") + _mirror_lacks(folder, saved, False)
    broken = max(_numbers(folder, r"not-finite-step-(\d+)(?:-process-\d+)?\.json"), default=0)
    if broken > saved:
        return Status(NUMERICS, f"{folder}: stopped at step {broken}, whose loss or gradient was not finite; {at}")
    return Status(RESUMABLE, f"{folder}: not finished; {at}; the same command goes on")


def _of_stages(place: Path) -> Status:
    _record(place / _STAGES)
    numbered = [path for path in place.iterdir() if path.is_dir() and re.fullmatch(r"\d+-\w+", path.name)]
    for folder in sorted(numbered, key=lambda path: int(path.name.partition("-")[0]), reverse=True):
        if (folder / _RUN).is_file():
            found = _of_run(folder)
            if found.code:
                return found
            break
    done = _record(place / _STAGES).get("finished")
    if done:
        return Status(0, f"{place}: all stages are finished")
    return Status(RESUMABLE, f"{place}: stages are left; the same command goes on")


def _mirror_lacks(folder: Path, saved: int, finished: bool) -> str:
    known = account(folder)
    lacks = behind(known, saved, finished) if known else ""
    return f"; {lacks}" if lacks else ""


def _numbers(folder: Path, pattern: str) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    return [int(found[1]) for name in names if (found := re.fullmatch(pattern, name))]


def _record(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read ({type(error).__name__}); restore it") from None
    if not isinstance(value, dict):
        raise InputError(f"{file}: must hold an object; restore it")
    return value
