"""Time and memory bounds for strangers' templates and packed files."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import jinja2

if sys.platform == "linux":
    import resource

SECONDS = 5.0
"""How long a template may take on one row."""
MEMORY = 2**30
"""Bytes that it may add to the process."""
RENDER_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
"""What a template can do wrong on a row: refuse it, miss a field, take a string for a list."""

_PAGES = Path("/proc/self/statm")


class TookTooLong(BaseException):
    """Not an Exception: jinja, and templates through it, go on after some of those."""


@contextmanager
def limited(seconds: float, size: int) -> Iterator[None]:
    """Raise TookTooLong in the block after ``seconds``, and MemoryError where it asks for ``size`` bytes more.

    Time is bounded in a process's main thread, where signals arrive; memory on Linux.
    """
    with _time(seconds), _memory(size):
        yield


@contextmanager
def _time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(_: int, __: FrameType | None) -> None:
        raise TookTooLong

    handler = signal.signal(signal.SIGALRM, stop)
    # again every second, in case the first is raised where Python drops exceptions
    before = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *before)


@contextmanager
def _memory(size: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(_PAGES.read_bytes().split(maxsplit=1)[0]) * resource.getpagesize() + size
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
