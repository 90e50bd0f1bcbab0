"""A lock file keeps other processes out, however its holder ends and whatever becomes of the file."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune import disk

HOLD = """
import sys
from pathlib import Path
from hybrid_ft.finetune import disk
path = Path(sys.argv[1])
with disk.held(path, lambda: sys.exit("held by another")):
    print("held", flush=True)
    if sys.stdin.readline():
        path.unlink()
    path.with_name("left").touch()
"""


def other(path: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path / "a/lock"``; after a line it takes the file away, at the
    input's end it ends."""
    with other(tmp_path / "a/lock", stdin=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_is_told_once_and_then_keeps_others_out(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    """The holder takes away the file that is waited for: a lock on that would keep nobody out."""
    path, waits = tmp_path / "a/lock", []

    def wait() -> None:
        waits.append(path.stat().st_ino)
        holder.communicate("\n")

    with disk.held(path, wait):
        third = other(path, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert third.communicate()[1] == "held by another\n"
    assert len(waits) == 1


def test_the_block_begins_when_the_holder_is_done(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    later = threading.Timer(0.2, holder.communicate)
    with disk.held(tmp_path / "a/lock", later.start):
        assert (tmp_path / "a/left").exists()
    later.join()


def test_who_must_wait_again_is_not_told_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is taken away while it is waited for, and another process was quicker with the next one."""
    path, waits = tmp_path / "lock", []

    def wait() -> None:
        if not waits:
            path.unlink()
        waits.append(path)

    monkeypatch.setattr(disk, "taken", lambda file, needed: False)
    with disk.held(path, wait):
        assert path.exists()
    assert waits == [path]


def test_what_the_wait_raises_ends_it(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), disk.held(tmp_path / "a/lock", lambda: 1 / 0):
        pass


def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuses)
    with open(tmp_path / "file", "a") as file:
        assert disk.taken(file, needed=False)
        with pytest.raises(OSError, match="No locks"):
            disk.taken(file)
    with disk.held(tmp_path / "lock", lambda: None, needed=False):
        pass
    with pytest.raises(OSError, match="No locks"), disk.held(tmp_path / "lock", lambda: None):
        pass


def test_a_file_or_folder_is_synced_and_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, int] = {}
    monkeypatch.setattr(os, "fsync", lambda handle: synced.update({os.fstat(handle).st_ino: handle}))
    file = tmp_path / "file"
    file.touch()
    disk.sync(file)
    disk.sync(tmp_path)
    assert list(synced) == [file.stat().st_ino, tmp_path.stat().st_ino]
    for handle in synced.values():
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(handle)
