"""A lock file keeps other processes out, however its holder ends and whatever becomes of the file."""

import errno
import fcntl
import subprocess
import sys
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
"""


def other(path: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, **options)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path / "a/lock"``; after a line it takes the file away, at the input's end it ends."""
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
