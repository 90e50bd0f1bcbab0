"""The console of a run, whose loss does not end the run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from rich.console import Console


def screen() -> Console:
    """A console on standard output that no failure to write ends."""
    return Console(file=None if sys.stdout is None else cast(TextIO, _Lasting(sys.stdout)))


def say(console: Console, text: str) -> None:
    """Print text as it is: rich would take ``train[0]`` for markup and wrap paths."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


class _Lasting:
    """A text stream whose first OSError turns it into one that goes nowhere, and is said once on standard error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        with suppress(OSError):
            # under the stream: what it holds still, and the interpreter's own last flush, must go somewhere too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            reason = error.strerror or error
            print(
                f"warning: nothing more can be shown here ({reason}); the run goes on, its figures are in metrics.jsonl",
                file=sys.stderr,
            )
