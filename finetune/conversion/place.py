"""The folder of a converted model, filled under another name until whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hybrid_ft.errors import BAD_INPUT, NUMERICS, STORAGE, InputError
from hybrid_ft.finetune import disk
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.checkpoints import publish

_RECORD = ".conversion"


class Place:
    """``out`` is not there until it is whole; ``OUT.part`` holds what is done. Raises InputError
    where that cannot be."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.part = out.with_name(f"{out.name}.part")
        if not out.name:
            raise InputError(f"{out}: must be a new folder")
        if out.exists():
            if out.is_dir():
                (out / _RECORD).unlink(missing_ok=True)  # of a start that was cut off after its last step but this
            raise InputError(f"{out}: is there already; name a new folder")
        if not out.absolute().parent.is_dir():
            raise InputError(f"{out}: its folder does not exist; make {out.absolute().parent} first")
        if self.part.exists() and not self._begun():
            raise InputError(f"{self.part}: is in the way; move it, or name another folder")

    def _begun(self) -> bool:
        return self.part.is_dir() and ((self.part / _RECORD).is_file() or not any(self.part.iterdir()))

    def check_room(self, needed: int) -> None:
        """Raise InputError where ``needed`` bytes do not fit beside what is done."""
        done = sum(file.stat().st_size for file in self.part.glob("*")) if self.part.is_dir() else 0
        free = shutil.disk_usage(self.out.absolute().parent).free
        if free + done < needed:
            raise InputError(
                f"{self.out}: needs {storage.size(needed)}, and {storage.size(free)} are free; free some space, or name "
                "a folder on another disk",
                STORAGE,
            )

    @contextmanager
    def held(self, identity: str) -> Iterator[Path]:
        """The folder to fill, empty unless it was begun for the same ``identity``; no other process may fill it too.

        What was written stays where the block fails, unless that is nothing, or the fault lies in what is converted,
        which no second start could go on from.
        """
        try:
            self.part.mkdir(exist_ok=True)
            record = open(self.part / _RECORD, "a+", encoding="utf-8")  # noqa: SIM115  held to the end
        except OSError as error:
            raise InputError(f"{self.part}: cannot be written ({error.strerror}); name another folder") from None
        with record:
            if not disk.taken(record):
                raise InputError(f"{self.part}: another process is at work in it; wait for it, or stop it")
            record.seek(0)
            if record.read() != identity:
                for path in self.part.iterdir():
                    if path.name != _RECORD:
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
                record.truncate(0)
                record.write(identity)
                record.flush()
                os.fsync(record.fileno())
            try:
                yield self.part
            except InputError as error:
                if error.status in (BAD_INPUT, NUMERICS):
                    shutil.rmtree(self.part)
                raise
            finally:
                if self.part.is_dir() and [path.name for path in self.part.iterdir()] == [_RECORD]:
                    shutil.rmtree(self.part)

    def publish(self, part: Path) -> None:
        """Give the filled folder its name. The record goes last: by it a start after a cut knows the
        folder for its own."""
        for path in part.glob(".*"):
            if path.name != _RECORD:
                path.unlink()
        publish(part, self.out)
        (self.out / _RECORD).unlink()
