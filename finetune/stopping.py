"""Signals: the first asks for a stop at the next step's end, the second ends the process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RESUMABLE = 75
"""Exit status of a run that was stopped and continues with the same command (EX_TEMPFAIL)."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal arrived where there is no step to finish: outside training. Like KeyboardInterrupt, no Exception."""


class StopRequest:
    """Whether a signal has asked this run to stop, and by which one."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._in_steps = False

    @property
    def now(self) -> bool:
        return self.received is not None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block; outside steps they raise Stopped at once, where they are."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # nohup and a shell's background jobs ignore some; that is what their user asked for
        heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_step_ends(self) -> Iterator[None]:
        """Inside the block a signal only sets ``received``: the trainer looks at it when a step has ended."""
        self._in_steps = True
        try:
            yield
        finally:
            self._in_steps = False
        if self.now:
            raise Stopped

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in _SIGNALS:
            if signal.getsignal(other) == self._on_signal:
                signal.signal(other, signal.SIG_DFL)
        if not self._in_steps:
            raise Stopped
