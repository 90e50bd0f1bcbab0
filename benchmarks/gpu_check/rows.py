"""Rows of the GPU check: one JSON line each, written at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from predictions import PREDICTED

FILE = "gpu_check.jsonl"


class Rows:
    """What one step has to tell."""

    def __init__(self, out: Path, part: int, step: str) -> None:
        self.file, self.part, self.step = out / FILE, part, step

    def add(self, name: str, value: float | str | None = None, unit: str = "", **rest: Any) -> None:
        """``failed``: why there is no value; ``wrong``: a result is, not only a time missing. ``rest`` may hold theirs,
        floor (what the hardware allows) and note."""
        row: dict[str, Any] = {"part": self.part, "step": self.step, "name": name, "value": value, "unit": unit}
        if name in PREDICTED:
            row["predicted"] = PREDICTED[name]
        row |= {key: kept for key, kept in rest.items() if kept not in (None, False, "")}
        row["time"] = datetime.now(UTC).isoformat(timespec="seconds")
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())

    @contextmanager
    def attempt(self, name: str, wrong: bool = False) -> Iterator[None]:
        """What fails within is a row, not the end of the step; a library that is not there is never ``wrong``."""
        try:
            yield
        except Exception as error:  # noqa: BLE001
            said = (str(error).strip().splitlines() or [""])[0]
            absent = isinstance(error, ModuleNotFoundError)
            self.add(name, failed=f"{type(error).__name__}: {said}"[:300], wrong=wrong and not absent)


def read_rows(out: Path) -> list[dict[str, Any]]:
    file = out / FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
