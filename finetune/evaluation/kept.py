"""Answers kept as JSON lines, so that none is made twice."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hybrid_ft.errors import STORAGE, InputError


def file_name(text: str) -> str:
    """A text as part of a path."""
    return re.sub(r"[^\w.-]+", "-", text)[:100]


class Kept:
    """A file of lines, each with a ``key``. A last line that was cut short is dropped when the file is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[str, dict[str, Any]] = {}
        whole = 0
        try:
            raw = path.read_bytes() if path.exists() else b""
            for line in raw.splitlines(keepends=True):
                if not line.endswith(b"\n"):
                    break
                value = json.loads(line)
                self.lines[value["key"]] = value
                whole += len(line)
            if whole < len(raw):
                with path.open("r+b") as file:
                    file.truncate(whole)
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}: is not a file of kept answers; remove it, or give another --out") from None
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give another --out", STORAGE) from None

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Append lines, on the disk when this returns."""
        new = list(lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); give another --out", STORAGE
            ) from None
        self.lines |= {line["key"]: line for line in new}
