"""Temporary folders that go with their process, also where it was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PREFIX = "hybrid-ft-work-"


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder, locked while its process or a fork of it lives. Making one clears those of dead processes.

    The lock is the folder's own, so that nothing foreign lies in it, and holds across containers that share a disk.
    """

    def __init__(self) -> None:
        self._handle: int | None = None
        clear_abandoned()
        while True:
            super().__init__(prefix=PREFIX, ignore_cleanup_errors=True)
            with suppress(FileNotFoundError):
                self._handle = _locked(self.name)
                if self._handle is None or os.path.isdir(self.name):
                    return
                os.close(self._handle)
            self.cleanup()  # another process has cleared it before it was locked

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at the interpreter's end ``os`` may be gone
        if self._handle is not None:
            close(self._handle)
            self._handle = None


def clear_abandoned() -> None:
    """Delete the folders of this user whose process is gone. What cannot be locked or deleted stays."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            _clear(folder)


def _clear(folder: Path) -> None:
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


def _locked(folder: str) -> int | None:
    """Its handle; None where its disk has no such locks, and then nobody clears it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        os.close(handle)
        return None
    return handle
