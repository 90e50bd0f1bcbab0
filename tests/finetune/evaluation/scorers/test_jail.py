"""What a program written by a model may and may not do."""

import os
import sys
import time
from pathlib import Path

import pytest
from jail_time import ENOUGH

from hybrid_ft.finetune.evaluation.scorers.code import passes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the jail is Linux's")


def test_time_and_memory_end() -> None:
    began = time.monotonic()
    programs = [
        "while True: pass",
        "import time; time.sleep(600)",
        "while True: print('y' * 9999)",
        "x = bytearray(2**31)",
    ]
    assert passes(programs, seconds=1.0) == [False] * 4
    assert time.monotonic() - began < 300


def test_no_network_no_other_process_no_other_folder(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    before = kept.stat()
    hostile = [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        f"import os; os.kill({os.getpid()}, 0)",
        f"import os; os.remove({str(kept)!r})",
        f"open({str(kept)!r}, 'w').write('theirs')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0o777)",
        f"import os; os.fchmod(os.open({str(kept)!r}, os.O_RDONLY), 0o777)",
        f"import os; os.chown({str(kept)!r}, {os.getuid()}, {os.getgid()})",
        f"import os; os.utime({str(kept)!r}, (0, 0))",
        f"import os; os.setxattr({str(kept)!r}, 'user.mine', b'1')",
        f"import os; os.rename({str(kept)!r}, 'own')",
        f"import os; os.link({str(kept)!r}, 'own'); open('own', 'w')",
        f"import os; os.symlink({str(kept)!r}, 'own'); open('own', 'w')",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing; multiprocessing.get_context('fork').Process(target=print).start()",
        "import ctypes; assert ctypes.CDLL(None).sethostname(b'own', 3) == 0",  # root without its capabilities
        "f = open('own', 'wb')\nfor _ in range(40): f.write(bytes(2**20))\nf.close()",
    ]
    assert passes(hostile) == [False] * len(hostile)
    assert kept.read_text() == "mine" and list(tmp_path.iterdir()) == [kept]
    assert (kept.stat().st_mode, kept.stat().st_mtime_ns, kept.stat().st_uid) == (
        before.st_mode,
        before.st_mtime_ns,
        before.st_uid,
    )
    # its own folder is there to be written, and threads work
    harmless = [
        "open('own', 'w').write('x'); assert open('own').read() == 'x'",
        "import threading\nheld = []\nthread = threading.Thread(target=held.append, args=(1,))\nthread.start(); thread.join()\nassert held",
    ]
    assert passes(harmless, ENOUGH) == [True, True]


def test_what_it_leaves_running_is_ended(tmp_path: Path) -> None:
    """The environment is not handed on, and nothing outlives the program."""
    os.environ["HYBRID_FT_TEST_SECRET"] = "hidden"
    try:
        assert passes(["import os; assert 'HYBRID_FT_TEST_SECRET' not in os.environ"], ENOUGH) == [True]
    finally:
        del os.environ["HYBRID_FT_TEST_SECRET"]
    began = time.monotonic()
    passes(["import os, time\nif os.fork() == 0: time.sleep(600)"], seconds=1.0)
    assert time.monotonic() - began < 300
