"""Runs the tests of written code in a bounded process without a network."""

from __future__ import annotations

import os
import platform
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.data.scratch import Scratch

SECONDS = 10.0
MEMORY = 2**30
_JAIL = Path(__file__).with_name("jail.py")
_FENCED = re.compile(r"```[\w+-]*[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL)
_MACHINES = ("x86_64", "aarch64")


def check_jail() -> None:
    """Raise InputError where the system has not what keeps written code from the network."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        here = f"{sys.platform} on {platform.machine()}"
        raise InputError(f"--run-code: needs Linux on {' or '.join(_MACHINES)}, this is {here}", ENVIRONMENT)
    if not passes(["print()"])[0]:
        raise InputError("--run-code: this system does not let a process give up its network (seccomp)", ENVIRONMENT)


def code_in(answer: str) -> str:
    """The first fenced block of an answer, or all of it. Line ends are Python's."""
    fenced = _FENCED.search(answer)
    return (fenced[1] if fenced else answer).replace("\r\n", "\n")


def passes(programs: Sequence[str], seconds: float = SECONDS, memory: int = MEMORY) -> list[bool]:
    """Whether each program comes to its end without an error. As many run at once as there are processors."""
    workers = max(1, min(len(programs), os.cpu_count() or 1, 16))
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(lambda program: _passes(program, seconds, memory), programs))


def _passes(program: str, seconds: float, memory: int) -> bool:
    """One program. What it prints at its end shows that it came there: it may have left before its tests."""
    mark = secrets.token_hex(16)
    with Scratch() as folder:
        file = Path(folder, "program.py")
        file.write_text(f"{program}\n\nprint({mark!r}, flush=True)\n", encoding="utf-8", errors="replace")
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(_JAIL), str(file), str(seconds), str(memory)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": folder, "TMPDIR": folder, "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return _read(process, seconds).rstrip().endswith(mark.encode()) and process.returncode == 0
        finally:
            # whatever it has started, in its own session
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()


def _read(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The end of what it prints, b"" where it takes too long. A program that prints for ever fills no memory."""
    import selectors
    import time

    assert process.stdout is not None
    end, held = time.monotonic() + seconds, b""
    with process.stdout as stream, selectors.DefaultSelector() as ready:
        ready.register(stream, selectors.EVENT_READ)
        while (left := end - time.monotonic()) > 0:
            if not ready.select(left):
                break
            piece = os.read(stream.fileno(), 65_536)
            if not piece:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))
                return held
            held = (held + piece)[-4096:]
    return b""
