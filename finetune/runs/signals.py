"""Signals: the first stops after the step, the second ends the process."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from hybrid_ft.errors import RESUMABLE

ECHO = 3.0
"""Seconds in which the same request may arrive again where there are several processes."""

LAUNCHER = "HYBRID_FT_LAUNCHER"
"""Environment variable that ``hybrid-ft launch`` sets for its workers: its own process id."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def resumable() -> Iterator[None]:
    """Inside the block, until a run listens itself, a signal ends the process with the status of a stopped run: the
    libraries take seconds to load."""
    with _handled_by(_end):
        _stop_with_launcher()
        yield


def _stop_with_launcher() -> None:
    """Have the kernel send SIGTERM when the launcher is gone, however it ended: nobody else would stop this process."""
    launcher = os.environ.get(LAUNCHER, "")
    if not launcher.isdecimal() or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(launcher):  # it ended before the call
        os.kill(os.getpid(), signal.SIGTERM)


def nothing_left_to_stop() -> None:
    """The process is about to end with its status, and a signal is not to change that."""
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup and a shell's background jobs ignore some; that is what their user asked for
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _end(number: int, frame: FrameType | None) -> None:
    with suppress(OSError):
        print(f"stopped by {signal.Signals(number).name}; the same command goes on from here", flush=True)
    os._exit(RESUMABLE)


class Stopped(BaseException):
    """A signal arrived where there is no step to finish: outside training. Like KeyboardInterrupt, no Exception."""


class StopRequest:
    """Whether a signal has asked this run to stop, and by which one.

    agreed   another of its processes has heard one, and all of them stop after the same step
    several  there are others: a launcher passes a signal on to all, so that one request arrives more than once
    """

    def __init__(self, several: bool = False) -> None:
        self.received: signal.Signals | None = None
        self.agreed, self.several = False, several
        self._in_steps, self._heard_at = False, 0.0

    @property
    def now(self) -> bool:
        return self.agreed or self.received is not None

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block; outside steps they raise Stopped at once, where they are."""
        with _handled_by(self._on_signal):
            yield self

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
        if self.received is None:
            self.received, self._heard_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._heard_at >= ECHO:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        else:
            return
        if not self.several:
            for other in _SIGNALS:
                if signal.getsignal(other) == self._on_signal:
                    signal.signal(other, signal.SIG_DFL)
        if not self._in_steps:
            raise Stopped
