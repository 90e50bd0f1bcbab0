"""A run's mirror: what a start fetches, and what its end waits for."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_ft.errors import ENVIRONMENT, RESUMABLE, InputError
from hybrid_ft.finetune.mirror.copying import Copying, Taken, same_place
from hybrid_ft.finetune.mirror.files import (
    CHECKPOINTS,
    HOLDER,
    RECORD,
    RESULTS,
    best_step,
    manifest_of,
    record_of,
    saved_steps,
)
from hybrid_ft.finetune.mirror.place import Place, unreachable
from hybrid_ft.finetune.runs import checkpoints, storage
from hybrid_ft.finetune.runs.atomic import publish, whole_file
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.mirror_account import account, behind

STOP_SECONDS = 600.0
"""How long a run that was stopped waits for what it has saved to be copied."""
END_SECONDS, IDLE_SECONDS = 24 * 3600.0, 600.0
"""How long a finished run waits at most, and for how long while nothing is copied."""
ATTEMPTS = 4
_PAUSE = 1.0


class Mirror:
    """One run's. Of several processes number 0 has it."""

    def __init__(self, text: str, folder: RunFolder, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self.place = Place(text)
        if same_place(self.place, folder.path):
            raise InputError(f"mirror: {self.place.name} and output {folder.path} must not lie in one another")
        self._names: dict[str, int] | None = {}
        self._copying: Copying | None = None
        self._left = False
        self._last: tuple[int, Collection[int | None]] | None = None

    def look(self) -> None:
        """Learn what is there. A folder where no run has begun gets the record of the run that is.

        Raises InputError for a place that holds something else or another run; and, where no run has begun here, for
        one that cannot be read: the run might be there.
        """
        try:
            holder = record_of(self._asked(lambda: self.place.read(HOLDER)))
            if holder is None and (foreign := self._asked(self.place.first)):
                raise InputError(
                    f"mirror: {self.place.name} holds {foreign} and is not the mirror of a run; give another mirror"
                )
            content = self._asked(lambda: self.place.read(RECORD))
            self._names = self._asked(self.place.listing) if content is not None else {}
        except InputError as error:
            if not self._folder.begun or error.status != ENVIRONMENT:
                raise
            self._names = None
            self._say(f"mirror    behind: {error}")
            return
        name, record = self.place.name, record_of(content)
        if content is not None and (record is None or not isinstance(record.get("identity"), dict)):
            raise InputError(f"mirror: {name}/{RECORD} is damaged; restore it, or give another mirror")
        if record is None:
            return
        if not self._folder.begun:
            self._folder.record, self._folder.known_from = record, f"mirror: {name}"
        elif self._folder.record.get("mirrored_as") != record.get("mirrored_as"):
            raise InputError(f"mirror: {name} holds another run; give another mirror")

    def fetch(self, newest: Path | None) -> Path | None:
        """The checkpoint to go on from: ``newest``, which the folder has, or a newer one of the place, which then lies
        in the folder with the run's small files; and the best one that it knows of. What is not whole there is named
        and left. Raises InputError."""
        if not self._names:
            return newest
        here = checkpoints.step_of(newest) if newest else 0
        steps = saved_steps(self._names)
        ahead = [step for step in steps if step > here]
        self._fetch_small(over=bool(ahead))
        found = next(filter(None, map(self._fetch_checkpoint, ahead)), newest)
        best = best_step(found) if found else None
        if best in steps and not (self._folder.checkpoints / f"checkpoint-{best}").is_dir():
            self._fetch_checkpoint(best)
        return found

    def fetch_results(self) -> None:
        """Of a run that is finished there: its results, where this folder lacks them."""
        if not self._names:
            return
        self._fetch_small(over=False)
        for name in self._folder.record["finished"]["results"]:
            if name in RESULTS and not (self._folder.path / name).is_dir():
                if self._fetch_folder(name, manifest_of(name)) is None:
                    raise InputError(
                        f"mirror: {self.place.name} has no whole {name}; take the run further by --extend, "
                        "or give another output",
                        ENVIRONMENT,
                    )
                self._say(f"mirror    fetched {name} from {self.place.name}")

    def claim(self) -> None:
        """Before a new run begins: the place is this run's, and can be written."""
        if self._folder.begun:
            return
        try:
            self._new_copying().claim()
        except Taken as error:
            raise InputError(f"mirror: {error}") from None
        except Exception as error:
            raise unreachable(self.place.name, "written", error) from error

    def begin(self, newest: Path | None) -> None:
        """From here on what is committed is copied. The run has begun; ``newest`` is the checkpoint it goes on from."""
        copying = self._copying or self._new_copying()
        if self._folder.record.get("mirrored_as") != copying.run:
            self._folder.note(mirrored_as=copying.run)
        copying.begin(newest)

    def end(self) -> None:
        """Of a run that has finished: what this folder or the place lacks of it goes there."""
        if not self.up_to_date:
            self.fetch_results()
            saved = checkpoints.committed(self._folder.checkpoints)
            self.begin(saved[-1] if saved else None)

    def take(self, folder: Path, keep: int, spared: Collection[int | None]) -> None:
        """As ``checkpoints.rotate``, of which the newest is now copied, and those in ``spared``: what is still being
        copied stays too, and goes with the next."""
        assert self._copying is not None  # it has begun with the run
        self._last = (keep, spared)
        best = next((step for step in spared if step), None)
        held = self._copying.take(checkpoints.committed(folder)[-1], best)
        checkpoints.rotate(folder, keep, {*spared, *held})

    @contextmanager
    def running(self) -> Iterator[None]:
        """At the block's end, however it ends, what is missing in the place is waited for, and said."""
        try:
            yield
        except BaseException:
            self._finish(STOP_SECONDS, STOP_SECONDS)
            raise
        self._finish(END_SECONDS, IDLE_SECONDS)

    def status(self) -> int:
        """Of a run that has ended: 0, or 75 where the same command has yet to copy something."""
        return RESUMABLE if self._left else 0

    @property
    def up_to_date(self) -> bool:
        """Whether a finished run is known to be there whole."""
        known = account(self._folder.path) or {}
        return known.get("whole") is True and known.get("place") == self.place.name

    def _new_copying(self) -> Copying:
        run = self._folder.record.get("mirrored_as") or uuid.uuid4().hex
        self._copying = Copying(self.place, self._folder.path, run, self._say)
        return self._copying

    def _finish(self, seconds: float, idle: float) -> None:
        copying = self._copying
        if copying is None or not copying.begun:
            return
        copying.tell()
        if not copying.wait(min(2.0, seconds), idle) and not copying.taken:
            self._say(f"mirror    waiting until {self.place.name} has everything")
            copying.wait(seconds, idle)
        copying.stop()
        if copying.up_to_date:
            if self._last:
                checkpoints.rotate(self._folder.checkpoints, *self._last)
            return
        self._left = not copying.taken
        saved = checkpoints.committed(self._folder.checkpoints)
        known = account(self._folder.path) or {}
        lacks = behind(known, checkpoints.step_of(saved[-1]) if saved else 0, self._folder.finished)
        self._say(
            f"{lacks or f'the mirror {self.place.name} lacks the newest files'}; the same command goes on copying"
        )

    def _fetch_small(self, over: bool) -> None:
        """The record first: with it the run has begun here. ``over``: also what is here already."""
        assert self._names is not None
        skipped = (CHECKPOINTS, *RESULTS)
        small = [name for name in self._names if name.partition("/")[0] not in skipped and _is_plain(name)]
        for name in sorted(small, key=lambda name: (name != RECORD, name)):
            path = self._folder.path / name
            if name == HOLDER or name.endswith(checkpoints.MANIFEST) or (path.exists() and not over):
                continue
            content = self._asked(lambda name=name: self.place.read(name))  # type: ignore[misc]
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                if name == RECORD:
                    self._folder.record = record_of(content) or self._folder.record
                with whole_file(path) as staged:
                    staged.write_bytes(content)

    def _fetch_checkpoint(self, step: int) -> Path | None:
        name = f"{CHECKPOINTS}/checkpoint-{step}"
        found = self._fetch_folder(name, f"{name}/{checkpoints.MANIFEST}")
        if found is not None:
            self._say(f"mirror    fetched {found.name} from {self.place.name}")
        return found

    def _fetch_folder(self, name: str, manifest: str) -> Path | None:
        """A folder of the place under the same name here, or None where it is not whole there."""
        final = self._folder.path / name
        staged = final.parent / checkpoints.STAGING / final.name
        wrong: str | None = None
        for _ in range(2):  # what came over may be damaged, and what is there may be not
            shutil.rmtree(staged, ignore_errors=True)
            staged.mkdir(parents=True)
            content = self._asked(lambda: self.place.read(manifest))
            listed = record_of(content)
            if content is None or listed is None or not all(map(_is_plain, listed)):
                wrong = f"{checkpoints.MANIFEST} is damaged"
                break
            (staged / checkpoints.MANIFEST).write_bytes(content)
            gone = next((file for file in listed if not self._get(f"{name}/{file}", staged / file)), None)
            wrong = f"{gone} is missing" if gone else checkpoints.fault(staged)
            if wrong is None:
                if final.parent != self._folder.path / CHECKPOINTS:
                    (staged / checkpoints.MANIFEST).unlink()
                publish(staged, final)
                break
        shutil.rmtree(staged.parent, ignore_errors=True)
        if wrong is None:
            return final
        self._say(f"mirror    {self.place.name}/{name}: {wrong}; it is not taken")
        return None

    def _get(self, name: str, file: Path) -> bool:
        def get() -> bool:
            try:
                self.place.get(name, file)
            except FileNotFoundError:
                return False
            return True

        return bool(self._asked(get))

    def _asked(self, question: Callable[[], Any]) -> Any:
        """The answer, asked for several times. Raises InputError where there is none, and what the own disk raises."""
        for attempt in range(ATTEMPTS):
            try:
                return question()
            except Exception as error:
                if storage.no_room(error):
                    raise
                if attempt == ATTEMPTS - 1 or isinstance(error, PermissionError):
                    raise unreachable(self.place.name, "read", error) from error
            time.sleep(_PAUSE * 2**attempt)
        raise AssertionError


def mirrored(
    text: str | None, folder: RunFolder, say: Callable[[str], None], work: Callable[[Mirror | None], int]
) -> int:
    """Do ``work`` with the mirror that is asked for, or without one. Returns its status, or 75 where something is not
    yet copied. All processes of the run together."""
    if text is None:
        return work(None)
    mirror = Mirror(text, folder, say) if folder.processes.main else None
    if mirror is not None:
        mirror.look()
    folder.record = folder.processes.of_main(folder.record)
    if mirror is None:
        return work(None)
    with mirror.running():
        status = work(mirror)
    return status or mirror.status()


def _is_plain(name: str) -> bool:
    """A relative name that stays in its folder, as everything that is copied has."""
    return not any(part in ("", "..") or part.startswith(".") for part in name.split("/"))
