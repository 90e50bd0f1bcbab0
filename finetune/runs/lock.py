"""A folder held by one process, through a lock file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid_ft.errors import BAD_INPUT, STORAGE, InputError
from hybrid_ft.finetune import disk
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

    def refuse() -> None:
        raise InputError(f"{key}: another process is at work in {folder}; wait for it, or stop it")

    made, before = _make(folder, key)
    with disk.held(folder / NAME, wait or refuse):
        try:
            yield
        finally:
            if _entries(folder) == before:
                _take_away(made)


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
