"""Starts of the program as a user makes them, ended as a machine ends them, and what is left compared by its bytes.

Known of the program are its command line, its exit statuses, ``checkpoints/checkpoint-N`` with a ``manifest.json`` that
lists every file, the results' folders and what is printed; nothing of how it is made.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from children import Child, ForkServer, Ranks

RESULTS = ("model", "adapter", "merged")
TIMES = ("tokens_per_s", "pairs_per_s", "seconds", "memory")
"""In metrics.jsonl; everything else there must come out the same twice."""
Inject = dict[str, dict[str, Any]]


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
        arguments = [job.command, str(job.recipe), *job.overrides, f"output={output}"]
        return self.start_command(arguments, inject, paused, environment)

    def start_command(
        self,
        arguments: Sequence[str],
        inject: Inject | None = None,
        paused: bool = False,
        environment: dict[str, str] | None = None,
    ) -> Child:
        """``hybrid-ft ARGUMENTS``."""
        log = self.place / f"start-{next(self._numbers)}"
        request = {
            "arguments": list(arguments),
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

    def go_on(self, job: Job, output: Path) -> str | None:
        """Start the job once more: what is wrong with how it goes on from the newest checkpoint, or with its end."""
        step = newest_sound(output)
        screen = self.finish(job, output).screen
        if step and f"checkpoint-{step}" not in screen and "finished" not in screen:
            return f"not resumed from step {step}\n{screen}"
        wrong = differing(results(output), self.whole(job).digests)
        return f"differs in {wrong}" if wrong else None

    def each(self, trials: Iterable[Any], trial: Callable[[Any], str | None]) -> list[str]:
        """Do all trials, some at once; returns what ``trial`` returned or raised for each that
        failed, whose folders stay."""

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


def of_save(lines: list[str], step: int) -> range:
    """Which lines stand between the first that names a step's checkpoint and the first that names the next one."""

    def first(wanted: int) -> int:
        found = [index for index, line in enumerate(lines) if re.search(rf"checkpoint-{wanted}\b", line)]
        return found[0] if found else len(lines)

    return range(first(step), first(step + 1)) if step else range(first(1))


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


def newest_sound(output: Path) -> int:
    """The step of the newest checkpoint that is whole, or 0."""
    return max((int(path.name[11:]) for path in checkpoints(output) if unsound(path) is None), default=0)


def unsound(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint by its own manifest, or None."""
    try:
        listed = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"{checkpoint.name}: {error}"
    for name, entry in listed.items():
        content = (checkpoint / name).read_bytes()
        if len(content) != entry["size"] or digest(content) != entry["sha256"]:
            return f"{checkpoint.name}/{name} is not what its manifest says"
    return None
