"""Temporary folders go with their process, however it ends, and never while it lives."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hybrid_ft.finetune.data import scratch
from hybrid_ft.finetune.data.scratch import PREFIX, Scratch, clear_abandoned

MAKE_AND_WAIT = """
from hybrid_ft.finetune.data.scratch import Scratch
kept = Scratch()
open(kept.name + "/rows", "w").write("rows")
print(kept.name, flush=True)
input()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_start_clears_what_a_killed_process_left(place: Path) -> None:
    other = place / "hybrid-ft-logs-1"  # for its user to read
    other.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        left = Path(child.stdout.readline().strip())
        with Scratch() as own:
            clear_abandoned()
            assert (left / "rows").exists() and os.path.isdir(own)
        assert not os.path.exists(own)
        child.send_signal(signal.SIGKILL)
    assert (left / "rows").exists()
    with Scratch() as own:
        assert sorted(place.iterdir()) == sorted([other, Path(own)])


def test_a_folder_is_kept_while_a_fork_uses_it() -> None:
    kept = Scratch()
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    handle, name = kept._handle, Path(kept.name)
    assert handle is not None
    os.close(handle)  # as the death of the process does
    kept._handle = None
    clear_abandoned()
    assert name.is_dir()
    os.close(writing)
    os.waitpid(child, 0)
    clear_abandoned()
    assert not name.exists()
    kept.cleanup()


def test_the_lock_goes_where_the_interpreter_ends_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its end a module's names are None before the last objects go."""
    kept = Scratch()
    monkeypatch.setattr(scratch, "os", None)
    kept.__del__()
    assert kept._handle is None
    monkeypatch.undo()
    kept.cleanup()


def test_a_folder_that_is_cleared_before_it_is_locked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    plain = tempfile.mkdtemp

    def cleared(*args: str | None, **names: str | None) -> str:
        made.append(plain(*args, **names))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", cleared)
    with Scratch() as name:
        assert [name] == made[1:] and os.path.isdir(name)


def test_what_is_no_folder_of_ours_stays(place: Path) -> None:
    target = place / "elsewhere"
    target.mkdir()
    (place / f"{PREFIX}link").symlink_to(target)
    (place / f"{PREFIX}file").write_text("")
    clear_abandoned()
    assert len(list(place.iterdir())) == 3
