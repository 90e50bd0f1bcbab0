"""One process holds a folder; what was made to hold it goes again, and nobody is kept out by a file that is gone."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import lock

HOLD = """
import sys
from pathlib import Path
from hybrid_ft.finetune.runs import lock
with lock.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds ``tmp_path / "run"`` until a line is written to it."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("key", ["output", "dpo.reference_cache"])
def test_a_held_folder_is_refused_by_the_key_that_names_it(
    other: subprocess.Popen[str], tmp_path: Path, key: str
) -> None:
    refused = rf"^{key}: another process is at work in .*run; wait for it, or stop it$"
    with pytest.raises(InputError, match=refused), lock.held(tmp_path / "run", key):
        pass


def test_a_lock_goes_with_its_process_however_that_ends(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.kill()
    other.wait()
    with lock.held(tmp_path / "run"):
        assert (tmp_path / "run/.lock").exists()


@pytest.mark.slow
def test_who_waits_goes_on_with_a_lock_that_keeps_others_out(other: subprocess.Popen[str], tmp_path: Path) -> None:
    """The holder leaves nothing behind, and so takes the very file away that the other one waits for."""
    waiting, seen = threading.Event(), []

    def wait() -> None:
        with lock.held(tmp_path / "run", wait=waiting.set):
            held = os.stat(tmp_path / "run/.lock").st_ino
            command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
            seen.append(subprocess.run(command, input="", text=True, capture_output=True, check=False))
            seen.append(held == os.stat(tmp_path / "run/.lock").st_ino)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    other.communicate("\n")
    thread.join()
    refused, same = seen
    assert "another process is at work" in refused.stderr and same


def test_what_was_made_is_taken_away_unless_something_came_into_it(tmp_path: Path) -> None:
    with lock.held(tmp_path / "a/b/run"):
        pass
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyError), lock.held(tmp_path / "a/b/run"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with lock.held(tmp_path / "a/run"):
        (tmp_path / "a/run/run.json").touch()
    assert {path.name for path in (tmp_path / "a/run").iterdir()} == {"run.json", ".lock"}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    with pytest.raises(KeyError), lock.held(tmp_path / "thesis"):
        raise KeyError
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(InputError, match=r"^output: .*run is a file; name a folder$"), lock.held(tmp_path / "run"):
        pass
