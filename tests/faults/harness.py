"""Starts of the program as a user makes them, ended as a machine ends them, and what is left compared by its bytes.

Known of the program are its command line, its exit statuses, ``checkpoints/checkpoint-N`` with a ``manifest.json`` that
lists every file, the results' folders and what is printed; nothing of how it is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESULTS = ("model", "adapter", "merged")
TIMES = ("tokens_per_s", "pairs_per_s", "seconds", "memory")
"""In metrics.jsonl; everything else there must come out the same twice."""
Inject = dict[str, dict[str, Any]]
LIMIT = 240.0
"""seconds after which a start that takes two has hung"""


class ForkServer:
    """The process of ``fork_server.py``; its answers are in the order of its questions, so one thread asks at a time."""

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
        self.process.communicate(timeout=30)

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

    def wait(self, limit: float = 60.0, grace: float = 30.0) -> list[int]:
        """The exit statuses, once all have ended. When one ends with a status that is not 0 the others are asked to stop
        (SIGTERM) and killed ``grace`` seconds later, as torchrun does; all are killed after ``limit`` seconds."""
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


@dataclass(frozen=True)
class Job:
    """A recipe to be run: ``command`` is its subcommand; ``overrides`` stand on the command line."""

    name: str
    command: str
    recipe: Path
    overrides: tuple[str, ...] = ()

    def but(self, name: str, *overrides: str) -> Job:
        return Job(f"{self.name}-{name}", self.command, self.recipe, (*self.overrides, *overrides))


@dataclass(frozen=True)
class Whole:
    """What a run that nothing disturbed leaves: ``digests`` of results and metrics; its duration in seconds."""

    output: Path
    digests: dict[str, str]
    seconds: float


class Harness:
    """Starts jobs in folders of their own under ``place``."""

    def __init__(self, place: Path, server: ForkServer, at_once: int) -> None:
        self.place, self.server, self.at_once = place, server, at_once
        self._wholes: dict[Job, Whole] = {}
        self._numbers = iter(range(10**9))
        self._making, self._of_trial = threading.Lock(), threading.local()

    def folder(self) -> Path:
        """A new one; its name has no meaning."""
        with self._making:
            folder = self.place / f"trial-{next(self._numbers)}"
        folder.mkdir()
        self._of_trial.folders = [*getattr(self._of_trial, "folders", []), folder]
        return folder

    def start(
        self,
        job: Job,
        output: Path,
        inject: Inject | None = None,
        paused: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Child:
        """``inject`` names functions of ``injections`` and their arguments; ``paused`` waits for SIGCONT."""
        log = self.place / f"start-{next(self._numbers)}"
        request = {
            "arguments": [job.command, str(job.recipe), *job.overrides, f"output={output}"],
            "cwd": str(self.place),
            "stdout": f"{log}.out",
            "stderr": f"{log}.err",
            "environment": environment or {},
            "inject": inject or {},
            "paused": paused,
        }
        for end in ("out", "err"):
            Path(f"{log}.{end}").touch()
        return Child(self.server, self.server.ask(start=request), Path(f"{log}.out"), Path(f"{log}.err"))

    def launch(self, job: Job, output: Path, count: int = 2, inject: dict[int, Inject] | None = None) -> Ranks:
        """One run in ``count`` processes, as torchrun starts them; ``inject`` by rank."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"ACCELERATE_USE_CPU": "true"}
        children = []
        for rank in range(count):
            environment = {name: str(value) for name, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            children.append(self.start(job, output, (inject or {}).get(rank), environment=environment))
        return Ranks(children)

    def finish(self, job: Job, output: Path) -> Child:
        """The same command until the run is done; it may take no more than one start."""
        child = self.start(job, output)
        status = child.wait()
        assert status == 0, f"exit status {status}\n{child.screen}"
        return child

    def whole(self, job: Job) -> Whole:
        """The run that all others of its job are compared with, made on first use. Not in a trial's thread."""
        if job not in self._wholes:
            output = self.place / f"whole-{job.name}"
            child = self.finish(job, output)
            self._wholes[job] = Whole(output, results(output), time.monotonic() - child.began)
        return self._wholes[job]

    def each(self, trials: Iterable[Any], trial: Callable[[Any], str | None]) -> list[str]:
        """Do all trials, some at once; returns what ``trial`` returned or raised for each that failed, whose folders stay."""

        def tried(one: Any) -> str | None:
            self._of_trial.folders = []
            try:
                wrong = trial(one)
            except (AssertionError, TimeoutError) as error:
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                return f"{one}: {wrong}"
            for folder in self._of_trial.folders:
                shutil.rmtree(folder)
            return None

        with ThreadPoolExecutor(self.at_once) as pool:
            return [line for line in pool.map(tried, list(trials)) if line]


def results(output: Path) -> dict[str, str]:
    """sha256 of every file of the results, and of the metrics without what depends on the clock."""
    files = [file for name in RESULTS for file in sorted((output / name).rglob("*")) if file.is_file()]
    assert files, f"no result in {output}"
    found = {str(file.relative_to(output)): digest(file.read_bytes()) for file in files}
    return found | {"metrics.jsonl": digest(json.dumps(metrics(output)).encode())}


def metrics(output: Path) -> list[dict[str, float]]:
    file = output / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def differing(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of files that are not in both, or not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def checkpoints(output: Path) -> list[Path]:
    """Folders that bear a checkpoint's name, oldest first."""
    found = [path for path in (output / "checkpoints").glob("checkpoint-*") if path.name[11:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[11:]))


def unsound(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its own manifest, or None."""
    listed = json.loads((checkpoint / "manifest.json").read_text())
    for name, entry in listed.items():
        content = (checkpoint / name).read_bytes()
        if len(content) != entry["size"] or digest(content) != entry["sha256"]:
            return f"{checkpoint.name}/{name} is not what its manifest says"
    return None


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)


def moments(chance: random.Random, whole: Whole, most: int) -> list[float]:
    """Of one to ``most`` kills in a row: seconds after the start, uniform over a whole run."""
    return [round(chance.uniform(0, whole.seconds), 3) for _ in range(chance.randint(1, most))]
