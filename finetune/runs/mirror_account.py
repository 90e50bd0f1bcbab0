"""How far a run's mirror is, as the run's folder keeps it."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from hybrid_ft.finetune.runs.atomic import write_text

ACCOUNT = ".mirror.json"


def keep_account(folder: Path, place: str, step: int | None, fault: str | None, whole: bool) -> None:
    """Write how far a place is: ``step`` is the newest whole checkpoint there, ``whole`` that nothing of a finished run
    is missing. A disk that is full loses the account and not the run."""
    with suppress(OSError):
        account = {"place": place, "step": step, "fault": fault, "whole": whole}
        write_text(folder / ACCOUNT, json.dumps(account) + "\n")


def account(folder: Path) -> dict[str, Any] | None:
    """What ``keep_account`` has written last; None where there is no mirror."""
    with suppress(OSError, ValueError):
        value = json.loads((folder / ACCOUNT).read_bytes())
        if isinstance(value, dict):
            return value
    return None


def behind(known: dict[str, Any], saved: int, finished: bool) -> str:
    """What a mirror lacks, in words; nothing where it has all that can be there. ``saved``: the run's newest step."""
    if known.get("whole") if finished else known.get("step") == saved or not saved:
        return ""
    step, place = known.get("step"), known.get("place")
    has = f"{place} has step {step}" if step else f"{place} has no checkpoint"
    lacks = "the result" if finished and step == saved else f"step {saved}" + (" and the result" if finished else "")
    fault = f" ({known['fault']})" if known.get("fault") else ""
    return f"the mirror {has} and lacks {lacks}{fault}"
