"""The screen while rows are prepared: how many, how fast, how long still."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from rich.console import Console

from hybrid_ft.finetune.data.report.account import SourceCounts

QUIET = 2.0
"""Seconds in which nothing is shown: most data is prepared by then."""
SPACING = 15.0
"""Seconds between two lines where there is no terminal."""
_LIVE = 0.25  # seconds between two changes of a terminal's line
_LOOK = 256  # rows between two looks at the clock


class Preparing:
    """Shows progress on standard error: a line that changes on a terminal, a line now and then elsewhere.

    Of the processes of a run only the first shows anything.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._shows = os.environ.get("RANK", "0") == "0" and sys.stderr is not None
        self._live = False

    def say(self, text: str) -> None:
        """Print a line."""
        self._clear()
        if self._shows:
            self._print(text)

    def watched(self, rows: Iterator[Any], counts: SourceCounts, files: Sequence[tuple[str, int]]) -> Iterator[Any]:
        """The rows of a source, shown as they come. ``files``: what they are read from, with their bytes,
        as far as known."""
        began = time.monotonic()
        shown = began + (QUIET - _LIVE if self._console.is_terminal else QUIET + SPACING / 2 - SPACING)
        try:
            for number, row in enumerate(rows, 1):
                yield row
                if number % _LOOK == 0 and (now := time.monotonic()) > shown + self._spacing:
                    shown = now
                    self._show(_line(counts, now - began, _share(files)))
        finally:
            self._clear()

    @property
    def _spacing(self) -> float:
        return _LIVE if self._console.is_terminal else SPACING

    def _show(self, line: str) -> None:
        if not self._shows:
            return
        if self._console.is_terminal:
            self._live = True
            with suppress(OSError, ValueError):
                sys.stderr.write(f"\r\x1b[2K{line[: self._console.width - 1]}")
                sys.stderr.flush()
        else:
            self._print(line)

    def _clear(self) -> None:
        if self._live:
            self._live = False
            with suppress(OSError, ValueError):
                sys.stderr.write("\r\x1b[2K")
                sys.stderr.flush()

    def _print(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _line(counts: SourceCounts, seconds: float, share: float | None) -> str:
    parts = [f"preparing {counts.name}: {counts.read:,} rows", f"{counts.read / max(seconds, 1e-9):,.0f} rows/s"]
    if share is not None:
        parts.append(f"{share:.0%}, about {timedelta(seconds=round(seconds * (1 / share - 1)))} left")
    return ", ".join(parts)


def _share(files: Sequence[tuple[str, int]]) -> float | None:
    """How much of the files has been read; None where that cannot be told, as of a file that is read in one go.

    It is the system's own account of the place in the open file, which counts packed files as they lie.
    """
    total, before = sum(size for _, size in files), 0
    try:
        handles = {os.path.realpath(link.path): link.name for link in os.scandir("/proc/self/fd")}
        for file, size in files:
            if (handle := handles.get(os.path.realpath(file))) is not None:
                with open(f"/proc/self/fdinfo/{handle}", encoding="ascii") as info:
                    at = int(info.readline().split()[1])
                return (before + at) / total if 0 < at < size else None
            before += size
    except (OSError, ValueError, IndexError):
        pass
    return None
