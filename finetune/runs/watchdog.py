"""Ends a process that makes no progress; it can resume from the last save.

A thread counts its own ticks. Wall-clock time would take a process for hung that was suspended for minutes (Ctrl-Z).
"""

from __future__ import annotations

import faulthandler
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_ft.errors import RESUMABLE

TICK = 1.0
"""seconds"""
FIRST = 1800.0
"""seconds without a beat before the first one: kernels compile"""
PATIENCE = 300.0
"""seconds without a beat after it, or ``SLOWER`` times the longest interval there was"""
SLOWER = 10
GRACE = 60.0
"""seconds by which the backstop waits longer"""

_STDERR = 2  # the descriptor: sys.stderr may be closed, replaced, or locked by the thread that hangs


class Watchdog:
    """Hears ``beat()`` while it is ``watching``, and ends the process with status 75 when there has been none for long.

    The stacks of all threads go to stderr and to ``hang-RANK.txt`` first. Where the interpreter lock is never let go,
    the thread cannot act; then ``faulthandler`` ends the process, with the stacks on stderr and status 1. Its timer
    runs on while a process is suspended: one that sleeps for longer than the limit and ``GRACE`` ends when it wakes.
    """

    def __init__(self) -> None:
        self._over: threading.Event | None = None
        self._lock = threading.Lock()
        self._reset()

    def _reset(self) -> None:
        self._ticks = self._last = self._longest = 0
        self._pauses = 0
        self._beaten = False

    def beat(self) -> None:
        """There is progress. Costs nothing to speak of; does nothing while not watching."""
        if self._over is None:
            return
        now = self._ticks
        if self._beaten:
            self._longest = max(self._longest, now - self._last)
        self._last, self._beaten = now, True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Not overdue inside the block, however long it takes; at its end the waiting begins anew."""
        if self._over is None:
            yield
            return
        with self._lock:
            self._pauses += 1
        self._arm()
        try:
            yield
        finally:
            self._last = self._ticks
            with self._lock:
                self._pauses -= 1
            self._arm()

    @contextmanager
    def watching(self, folder: Path, rank: int = 0) -> Iterator[None]:
        """Watch inside the block; nothing is left running or armed after it. ``folder`` gets the stacks."""
        global _active
        assert _active is None, "faulthandler has one timer for the whole process"
        self._reset()
        over = self._over = threading.Event()
        _active = self
        ticking = threading.Thread(target=self._tick, args=(over, folder, rank), name="watchdog", daemon=True)
        ticking.start()
        try:
            yield
        finally:
            # in a forked child there is no thread to stop, and the event may be locked for ever
            if self._over is over:
                over.set()
                ticking.join()
                self._forget()
                self._arm()

    @property
    def _limit(self) -> float:
        return max(PATIENCE, SLOWER * self._longest * TICK) if self._beaten else FIRST

    def _forget(self) -> None:
        global _active
        self._over, self._lock, _active = None, threading.Lock(), None

    def _tick(self, over: threading.Event, folder: Path, rank: int) -> None:
        self._arm()
        while not over.wait(TICK):
            self._ticks += 1
            if not self._pauses and (self._ticks - self._last) * TICK > self._limit:
                _end(self._limit, folder, rank)
            self._arm()

    def _arm(self) -> None:
        """The backstop: goes off only if this is not called again in time."""
        with self._lock:
            if self._over is None or self._over.is_set() or self._pauses:
                faulthandler.cancel_dump_traceback_later()
            else:
                faulthandler.dump_traceback_later(self._limit + GRACE, exit=True, file=_STDERR)


def _end(limit: float, folder: Path, rank: int) -> None:
    # the folder's disk may be what hangs; then this goes off
    faulthandler.dump_traceback_later(GRACE, exit=True, file=_STDERR)
    file = folder / f"hang-{rank}.txt"
    os.write(_STDERR, b"\n")
    faulthandler.dump_traceback(file=_STDERR)
    said = (
        f"error: no progress for {limit:g} s (process {rank}): ended, with what every thread was doing above and in "
        f"{file}; the same command goes on from the last save\n"
    )
    os.write(_STDERR, said.encode())
    try:
        with open(file, "w") as out:
            faulthandler.dump_traceback(file=out)
    finally:
        os._exit(RESUMABLE)


_active: Watchdog | None = None


# A child forked while faulthandler's timer runs would wait for ever for the timer's thread when it exits.
def _before_fork() -> None:
    if _active is not None:
        _active._lock.acquire()
        faulthandler.cancel_dump_traceback_later()


def _in_parent() -> None:
    if _active is not None:
        _active._lock.release()
        _active._arm()


def _in_child() -> None:
    if _active is not None:
        _active._forget()


os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
