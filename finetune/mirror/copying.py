"""The thread that copies what a run has committed to its mirror."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hybrid_ft.errors import masked, one_line
from hybrid_ft.finetune.mirror.files import (
    CHECKPOINTS,
    HOLDER,
    RECORD,
    RESULTS,
    best_step,
    manifest_of,
    record_of,
    small_files,
)
from hybrid_ft.finetune.mirror.place import Place
from hybrid_ft.finetune.runs.atomic import sha256
from hybrid_ft.finetune.runs.checkpoints import MANIFEST, step_of
from hybrid_ft.finetune.runs.mirror_account import keep_account

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""seconds between attempts, doubled each time"""


class Taken(Exception):
    """The place belongs to another run, or to a later start of this one."""


class Copying:
    """Brings a place up to date with a run's folder whenever it is told that something was committed.

    A checkpoint's files come first, then their sizes are compared, then its manifest; only then do older ones go. Of
    several that wait the newest is copied. An error is said once, and the attempt is made again, ever more slowly.
    """

    def __init__(self, place: Place, folder: Path, run: str, say: Callable[[str], None]) -> None:
        self._place, self._folder, self.run, self._say = place, folder, run, say
        self._start = uuid.uuid4().hex
        self._claimed, self.begun, self._over = False, False, False
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._newest: Path | None = None
        self._best: int | None = None
        self._at_work: Path | None = None
        self._sent: set[tuple[str, str]] = set()
        self._signs: dict[str, object] = {}
        self._there: dict[str, bytes] = {}
        self._step: int | None = None
        self.fault: str | None = None
        self.taken = False
        self.moved = time.monotonic()
        """when something was last copied"""

    def claim(self) -> None:
        """Write whose the place is. Raises Taken, and the place's own errors."""
        holder = record_of(self._place.read(HOLDER))
        if holder is not None and holder.get("run") != self.run and self._place.read(RECORD) is not None:
            raise Taken(f"{self._place.name} holds another run; give another mirror")
        mine = {"run": self.run, "start": self._start, "at": _now(), "host": socket.gethostname()}
        self._place.write(HOLDER, json.dumps(mine).encode())
        self._signs, self._there, self._claimed = {}, {}, True

    def begin(self, newest: Path | None) -> None:
        """Start the thread. ``newest``: the checkpoint that the run goes on from."""
        self._newest, self._best, self.begun = newest, best_step(newest) if newest else None, True
        self.tell()
        threading.Thread(target=self._work, name="mirror", daemon=True).start()

    def take(self, checkpoint: Path, best: int | None) -> set[int]:
        """Copy a new checkpoint, and that of the step ``best``. Returns the steps that must stay on
        the disk for now."""
        with self._changed:
            self._newest, self._best = checkpoint, best
        self.tell()
        return self.held

    @property
    def held(self) -> set[int]:
        with self._changed:
            paths = [path for path in (self._newest, self._at_work) if path is not None and not self.taken]
            return {step_of(path) for path in paths}

    def tell(self) -> None:
        """Something has changed."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def wait(self, seconds: float, idle: float) -> bool:
        """Whether all that was told is there, at the latest after ``seconds``, or ``idle`` in
        which nothing was copied."""
        end = time.monotonic() + seconds
        self.moved = time.monotonic()
        with self._changed:
            while self._done < self._asked and not self.taken:
                now = time.monotonic()
                if now >= end or now - self.moved >= idle:
                    return False
                self._changed.wait(min(0.5, end - now))
            return not self.taken

    def stop(self) -> None:
        """The thread ends when what it is at is done, or has failed."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    @property
    def up_to_date(self) -> bool:
        with self._changed:
            return self._done >= self._asked and not self.taken

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._done < self._asked or self._over)
                asked = self._asked
                if self._over:
                    return
            try:
                if self.fault is not None:
                    self._place.renew()
                whole = self._catch_up()
            except Taken as error:
                self._end(str(error))
                return
            # whatever it is, it is not the training's
            except Exception as error:  # noqa: BLE001
                self._failed(error)
                with self._changed:
                    self._changed.wait_for(lambda: self._asked != asked or self._over, pause)  # noqa: B023
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = FIRST_PAUSE
            if self.fault is not None:
                self.fault = None
                self._say("mirror    caught up")
            self._account(whole)
            with self._changed:
                self._done = asked
                self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        text = f"{type(error).__name__}: {one_line(masked(str(error)), 200)}"
        if self.fault is None:
            self._say(f"mirror    {self._place.name} is behind ({text}); trying again")
        self.fault = text
        self._account(False)

    def _end(self, why: str) -> None:
        self.fault = why
        self._account(False)
        with self._changed:
            self.taken = True
            self._changed.notify_all()
        self._say(f"mirror    {why}; nothing more is copied there, the run goes on")

    def _account(self, whole: bool) -> None:
        keep_account(self._folder, self._place.name, self._step, self.fault, whole)

    def _catch_up(self) -> bool:
        """Everything once. Returns whether the run is finished and all of it there."""
        self._check_own()
        # each is known before what leads to it goes: a checkpoint or a record that is written meanwhile must not be
        # there without the lines, answers and results that it stands for
        newest, best = self._known()
        record = (self._folder / RECORD).read_bytes()
        finished = (record_of(record) or {}).get("finished")
        if finished:
            newest, best = self._known()
        else:
            self._put_small(record)
        kept = []
        for path in [newest, *([newest.with_name(f"checkpoint-{best}")] if newest and best else [])]:
            if path is not None and path.name not in kept and self._put_checkpoint(path):
                kept.append(path.name)
        if finished:
            for name in finished.get("results", []):
                self._put_result(name)
            self._put_small(record)
        if newest is not None and newest.name in kept:
            self._step = step_of(newest)
            self._remove_all_but(kept)
        return bool(finished)

    def _known(self) -> tuple[Path | None, int | None]:
        """The newest checkpoint, which stays on the disk from now on until it was copied, and the step of the best."""
        with self._changed:
            self._at_work = self._newest
            return self._newest, self._best

    def _check_own(self) -> None:
        if not self._claimed:
            self.claim()
            return
        holder = record_of(self._place.read(HOLDER))
        if holder is None:  # somebody has cleared the place
            self.claim()
        elif holder.get("start") != self._start:
            raise Taken(f"{self._place.name} was taken over by a start on {holder.get('host')} at {holder.get('at')}")

    def _put_small(self, record: bytes) -> None:
        """What has changed since it was last sent, read at once: a file may grow at any time. ``record``: the run's
        own, as it was before the others were looked at."""
        for name in small_files(self._folder):
            path = self._folder / name
            try:
                stat = path.stat()
                sign: object = record if name == RECORD else (stat.st_mtime_ns, stat.st_size)
                changed = self._signs.get(name) != sign
                content = (record if name == RECORD else path.read_bytes()) if changed else None
            except FileNotFoundError:
                continue
            if content is not None:
                self._place.write(name, content)
                self._signs[name] = sign
                self.moved = time.monotonic()

    def _put_checkpoint(self, path: Path) -> bool:
        """Whether it is there; False where it is gone from the disk."""
        with self._changed:
            self._at_work = path
        try:
            content = (path / MANIFEST).read_bytes()
            self._put_folder(path, f"{CHECKPOINTS}/{path.name}", f"{CHECKPOINTS}/{path.name}/{MANIFEST}", content)
        except FileNotFoundError:
            if path.is_dir():
                raise
            return False
        finally:
            with self._changed:
                self._at_work = None
        return True

    def _put_result(self, name: str) -> None:
        """A result, with a list of its files beside it."""
        path = self._folder / name
        if name not in RESULTS or not path.is_dir():
            return
        files = sorted(file for file in path.rglob("*") if file.is_file())
        sums = sha256(files)
        listed = {
            file.relative_to(path).as_posix(): {"size": file.stat().st_size, "sha256": sums[file]} for file in files
        }
        self._put_folder(path, name, manifest_of(name), json.dumps(listed, indent=1).encode())

    def _put_folder(self, path: Path, name: str, manifest: str, content: bytes) -> None:
        """Files, then their list. What is there under the same list is not sent again."""
        if self._there.get(name) == content:
            return
        there = self._place.read(manifest)
        if there != content:
            if there is not None:
                self._place.remove(manifest)
            listed: dict[str, Any] = json.loads(content)
            for file, entry in listed.items():
                key = (f"{name}/{file}", entry["sha256"])
                if key not in self._sent:
                    self._place.put(path / file, f"{name}/{file}")
                    self._sent.add(key)
                    self.moved = time.monotonic()
            sizes = self._place.listing(name)
            short = [file for file, entry in listed.items() if sizes.get(file) != entry["size"]]
            if short:
                self._sent.clear()
                raise OSError(f"{name}/{short[0]} has {sizes.get(short[0], 0):,} bytes there")
            for stale in sizes.keys() - listed.keys() - {MANIFEST}:
                self._place.remove(f"{name}/{stale}")
            # a copy may take long: by now another start may have taken the place over
            self._check_own()
            self._place.write(manifest, content)
        self._there[name] = content
        self._sent.clear()
        self.moved = time.monotonic()

    def _remove_all_but(self, kept: list[str]) -> None:
        """The manifest first: what is half removed does not count as a checkpoint."""
        older = sorted({file.partition("/")[0] for file in self._place.listing(CHECKPOINTS)} - set(kept))
        if older:
            # a start that has taken the place over since may have saved newer ones, after this list
            self._check_own()
        for name in older:
            self._place.remove(f"{CHECKPOINTS}/{name}/{MANIFEST}")
            self._place.remove_folder(f"{CHECKPOINTS}/{name}")
            self._there.pop(f"{CHECKPOINTS}/{name}", None)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def same_place(place: Place, folder: Path) -> bool:
    """Whether one of the two lies in the other."""
    if not place.local:
        return False
    there, here = Path(os.path.realpath(place.root)), Path(os.path.realpath(folder))
    return there.is_relative_to(here) or here.is_relative_to(there)
