"""Lock files that keep other processes out, and syncs to disk."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def held(path: Path, wait: Callable[[], object], needed: bool = True) -> Iterator[None]:
    """Hold a lock file inside the block, making it and its folder where they are missing. It stays unless the block
    removes it.

    Where another process holds it, ``wait`` is called once, and the block begins when that one is done; what ``wait``
    raises ends the waiting. ``needed``: as ``taken``. Raises OSError for a place that cannot be written.
    """
    waited = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            if not taken(file, needed):
                if not waited:
                    wait()
                waited = True
                fcntl.lockf(file, fcntl.LOCK_EX)
            # whoever held it may have taken the file away: a lock on that keeps nobody out
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                yield
                return


def taken(file: IO[str], needed: bool = True) -> bool:
    """Whether a file that is open for writing is now this process's alone, until it is closed.

    On a disk that has no locks: True unless it is ``needed``, else an OSError.
    """
    try:
        # not flock, which forked workers would inherit and hold for a while after this process is killed
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        if needed:
            raise
    return True


def sync(path: Path) -> None:
    """Wait until a file's or a folder's content is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
