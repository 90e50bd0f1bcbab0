"""The processes of the program: started from the fork server, ended by signals, and what a
launcher does for several."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT = 600.0
"""seconds after which a start that takes two has hung"""


class ForkServer:
    """The process of ``fork_server.py``; its answers are in the order of its questions, so one thread
    asks at a time."""

    def __init__(self, errors: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(Path(__file__).with_name("fork_server.py"))]
        with open(errors, "w") as file:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                bufsize=1,
                env=environment,
            )
        self.turn = threading.Lock()
        assert self._answer() == "ready", errors.read_text()

    def ask(self, **request: Any) -> int:
        with self.turn:
            assert self.process.stdin is not None
            print(json.dumps(request), file=self.process.stdin)
            return int(self._answer())

    def close(self) -> None:
        self.process.communicate(timeout=120)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@dataclass
class Child:
    """One start of the program."""

    server: ForkServer
    pid: int
    stdout: Path
    stderr: Path
    began: float = field(default_factory=time.monotonic)
    status: int | None = None
    tracer: subprocess.Popen[str] | None = None
    """ends by itself after the child"""

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)

    def kill(self, number: signal.Signals) -> bool:
        """Whether it was still there to be sent the signal."""
        if self.ended(0):
            return False
        signal.pidfd_send_signal(self.handle, number)
        return True

    def wait(self, limit: float = LIMIT) -> int:
        """The exit status, negative for the signal that ended it, as subprocess has it."""
        if self.status is None:
            if not self.ended(limit):
                self.dispose()
                raise TimeoutError(f"still running after {limit:.0f} s\n{self.screen}")
            self._reap()
        assert self.status is not None
        return self.status

    def dispose(self) -> None:
        """End it, whatever it does, with every process that it has started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.status is None:
            self._reap()

    @property
    def screen(self) -> str:
        return "".join(file.read_text(errors="replace") for file in (self.stdout, self.stderr))

    def _reap(self) -> None:
        self.status = os.waitstatus_to_exitcode(self.server.ask(reap=self.pid))
        os.close(self.handle)
        if self.tracer:
            self.tracer.communicate()

    def ended(self, limit: float) -> bool:
        """Whether it has ended, now or within ``limit`` seconds."""
        if self.status is not None:
            return True
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(limit * 1000))


@dataclass
class Ranks:
    """The processes of one run, and what a launcher does for them."""

    children: list[Child]
    hung: str | None = None
    """what had to be done to end them"""

    def wait(self, limit: float = LIMIT, grace: float = 30.0) -> list[int]:
        """The exit statuses, once all have ended. When one ends with a status that is not 0 the others are asked to
        stop (SIGTERM) and killed ``grace`` seconds later, as torchrun does; all are killed after ``limit`` seconds."""
        began, asked_at = time.monotonic(), None
        while running := [rank for rank, child in enumerate(self.children) if not child.ended(0.02)]:
            failed = [child for rank, child in enumerate(self.children) if rank not in running and child.wait() != 0]
            now = time.monotonic()
            if failed and asked_at is None:
                asked_at = now
                for rank in running:
                    self.children[rank].kill(signal.SIGTERM)
            too_long = now - began > limit
            if too_long or (asked_at is not None and now - asked_at > grace):
                why = f"after {limit:.0f} s" if too_long else f"{grace:.0f} s after SIGTERM"
                self.hung = f"rank {running} still ran {why}\n{self.screen}"
                self.dispose()
        return [child.wait() for child in self.children]

    def dispose(self) -> None:
        for child in self.children:
            child.dispose()

    @property
    def screen(self) -> str:
        return "".join(f"--- rank {rank}\n{child.screen}" for rank, child in enumerate(self.children))
