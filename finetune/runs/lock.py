"""A folder held by one process, through a lock file."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from hybrid_ft.errors import BAD_INPUT, STORAGE, InputError
from hybrid_ft.finetune.runs.storage import no_room

NAME = ".lock"


@contextmanager
def held(folder: Path, key: str = "output", wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Hold ``folder`` inside the block, making it and its parents where they are missing. What was made is taken away
    again if nothing has come into it when the block ends.

    Where another process holds it: ``wait`` is called, and the block begins once that one is done; without ``wait`` an
    InputError says so. ``key``: of the recipe, that names the folder. Raises InputError for a place that cannot be
    written.
    """
    made, before = _make(folder, key)
    with _locked(folder, key, wait):
        try:
            yield
        finally:
            if _entries(folder) == before:
                _take_away(made)


def taken(file: IO[str]) -> bool:
    """Whether a file that is open for writing is now this process's alone, until it is closed."""
    try:
        # not flock, which the loader's workers would inherit and hold for a while after this process is killed
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _entries(folder: Path) -> set[str]:
    return set(os.listdir(folder)) - {NAME}


def _take_away(made: list[Path]) -> None:
    with suppress(OSError):
        for place in made:
            # a link that leads nowhere counts as missing too, and is its owner's
            place.unlink(missing_ok=True) if place.name == NAME else place.rmdir()


def _make(folder: Path, key: str) -> tuple[list[Path], set[str]]:
    """What was not there, the deepest first, and what lay in the folder."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{key}: {folder} is a file; name a folder")
    missing = [place for place in (folder / NAME, folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = _entries(folder)
        with open(folder / NAME, "a"):  # and no touch: a finished run is left as it is
            pass
    except OSError as error:
        _take_away(missing)
        status = STORAGE if no_room(error) else BAD_INPUT
        reason = f"cannot write in {folder} ({error.strerror})"
        raise InputError(f"{key}: {reason}; give another {key.rpartition('.')[2]}", status) from error
    return missing, before


@contextmanager
def _locked(folder: Path, key: str, wait: Callable[[], object] | None) -> Iterator[None]:
    while True:
        with open(folder / NAME, "a") as file:
            if not taken(file):
                if wait is None:
                    raise InputError(f"{key}: another process is at work in {folder}; wait for it, or stop it")
                wait()
                fcntl.lockf(file, fcntl.LOCK_EX)
            # whoever held it may have taken the file away: a lock on that keeps nobody out
            if (folder / NAME).exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(folder / NAME)):
                yield
                return
            folder.mkdir(parents=True, exist_ok=True)
