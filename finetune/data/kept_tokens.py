"""Sources' tokens kept from one start to the next, whole or not at all.

An entry is a folder named after its key: ``rows.arrow``, a ``.npy`` for each of the rows' numbers, ``account.json``,
and ``manifest.json`` with the size and checksum of each. It is filled under another name, synced and renamed. Whoever
fills one holds a lock, and others that want the same wait for it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from hybrid_ft.finetune import disk
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.report.count import Count, Counts
from hybrid_ft.finetune.data.token_key import SourceKey
from hybrid_ft.finetune.data.token_store import SourceTokens

MOST_BYTES = 64 * 2**30
"""Of all entries; beyond it the longest unused go."""

_ROWS, _ACCOUNT, _MANIFEST = "rows.arrow", "account.json", "manifest.json"
_UNFINISHED, _LOCK = ".unfinished-", ".lock-"
_NAME = re.compile(r"[0-9a-f]{32}")
_ABANDONED = 7 * 24 * 3600  # seconds after which what another machine was making is taken to be left behind
_BLOCK = 2**22

Make = Callable[[Path], SourceTokens]


class KeptTokens:
    """A folder of entries. ``say`` takes a line for the user."""

    def __init__(self, folder: Path, say: Callable[[str], None], most: int = MOST_BYTES) -> None:
        self.folder, self._say, self._most = folder, say, most
        self._used: set[str] = set()
        self._damaged: set[str] = set()

    def get(self, key: SourceKey, make: Make, elsewhere: Path) -> SourceTokens:
        """The tokens of a source: kept ones, or what ``make`` writes to a file.

        Where nothing can be kept they are made in ``elsewhere``, a file. Raises what ``make`` raises but for a failure
        to write here.
        """
        if (found := self._read(key)) is not None:
            self._sweep()
            return found
        missing = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        try:
            with self._held(key):
                return self._read(key) or self._made(key, make, elsewhere)
        except OSError as error:
            self._say(f"tokens are not kept: {self.folder}: {error.strerror or error}; data.cache names another folder")
        finally:
            with suppress(OSError):
                for place in missing:
                    place.rmdir()  # if nothing came into it
        return make(elsewhere)

    def _made(self, key: SourceKey, make: Make, elsewhere: Path) -> SourceTokens:
        self._sweep(held=key)
        entry, staged = self.folder / key.name, self._unfinished(key.name[:8])
        try:
            staged.mkdir()
            made = make(staged / _ROWS)
            if not key.still_holds():
                self._say(f"tokens are not kept: {made.counts.name} changed while it was read")
                shutil.move(staged / _ROWS, elsewhere)
                return dataclasses.replace(made, file=elsewhere)
            for name, numbers in made.numbers.items():
                np.save(staged / f"{name}.npy", numbers, allow_pickle=False)
            (staged / _ACCOUNT).write_text(json.dumps(dataclasses.asdict(made.counts)), encoding="utf-8")
            sums = {file.name: _checksum(file) for file in sorted(staged.iterdir())}
            (staged / _MANIFEST).write_text(json.dumps({"files": sums, "of": key.parts}, default=str), encoding="utf-8")
            for place in (*staged.iterdir(), staged):
                disk.sync(place)
            if entry.exists():  # a damaged one
                self._remove(entry)
            os.rename(staged, entry)
            disk.sync(self.folder)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        self._used.add(key.name)
        self._make_room()
        return dataclasses.replace(made, file=entry / _ROWS)

    def _read(self, key: SourceKey) -> SourceTokens | None:
        """A whole entry; None where there is none, or a damaged one, which is said."""
        entry = self.folder / key.name
        if not entry.is_dir():
            return None
        try:
            sums = json.loads((entry / _MANIFEST).read_bytes())["files"]
            damaged = next((name for name, known in sums.items() if _checksum(entry / name) != known), None)
            if damaged is None:
                counts = _counts(json.loads((entry / _ACCOUNT).read_bytes()))
                numbers = {Path(name).stem: np.load(entry / name) for name in sums if name.endswith(".npy")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            damaged = _MANIFEST
        if damaged is not None:
            # said once, also where it is read again under the lock; no folder: another process has just taken it away
            if entry.is_dir() and key.name not in self._damaged:
                self._damaged.add(key.name)
                self._say(f"kept tokens are damaged ({entry / damaged}); they are made anew")
            return None
        with suppress(OSError):
            os.utime(entry)  # used now
        self._used.add(key.name)
        return SourceTokens(counts, entry / _ROWS, numbers)

    @contextmanager
    def _held(self, key: SourceKey) -> Iterator[None]:
        """Hold a key against other processes, waiting for one that holds it."""
        file = self.folder / f"{_LOCK}{key.name}"
        waiting = "another process is preparing the same rows; waiting for it"
        # unlike a run's folder an entry is whole whoever else is at work: a disk without locks keeps nobody out
        with disk.held(file, lambda: self._say(waiting), needed=False):
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def _unfinished(self, what: str) -> Path:
        """A name for what is not whole, or no longer, which says whose it is."""
        return self.folder / f"{_UNFINISHED}{what}-{time.time_ns()}-{os.getpid()}@{socket.gethostname()}"

    def _sweep(self, held: SourceKey | None = None) -> None:
        """Remove what processes have left behind that are no more. ``held``: the key that this one holds."""
        for place in self.folder.glob(f"{_UNFINISHED}*"):
            process, _, host = place.name.rpartition("-")[2].partition("@")
            gone = not _alive(process) if host == socket.gethostname() else _age(place) > _ABANDONED
            if gone:
                shutil.rmtree(place, ignore_errors=True)
        for file in self.folder.glob(f"{_LOCK}*"):
            # not this process's own: closing a file lets go of all locks on it
            if held is None or file.name != f"{_LOCK}{held.name}":
                with suppress(OSError), open(file, "a") as opened:
                    if disk.taken(opened, needed=False):
                        file.unlink()

    def _make_room(self) -> None:
        """Remove the entries that have not been used for longest, where all together are too large."""
        entries = sorted((_age(entry), entry) for entry in self.folder.iterdir() if _NAME.fullmatch(entry.name))
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for _, entry in entries}
        total = sum(sizes.values())
        for _, entry in reversed(entries):
            if total > self._most and entry.name not in self._used:
                total -= sizes[entry]
                self._remove(entry)

    def _remove(self, entry: Path) -> None:
        gone = self._unfinished("removed")
        os.rename(entry, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _counts(kept: dict[str, Any]) -> SourceCounts:
    """The counts of a source from their JSON."""
    counts = SourceCounts(**kept)
    for name, value in kept.items():
        if isinstance(getattr(SourceCounts(""), name), Counts):
            reasons = {reason: Count(**count) for reason, count in value["by_reason"].items()}
            setattr(counts, name, Counts(reasons))
    return counts


def _checksum(file: Path) -> list[Any]:
    """Size and checksum of a file: of damage, not of malice."""
    total, size = xxhash.xxh3_128(), 0
    with open(file, "rb") as opened:
        while block := opened.read(_BLOCK):
            total.update(block)
            size += len(block)
    return [size, total.hexdigest()]


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _age(place: Path) -> float:
    """Seconds since it was last changed or used."""
    try:
        return time.time() - place.stat().st_mtime
    except OSError:
        return 0.0
