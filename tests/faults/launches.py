"""Starts of ``hybrid-ft launch`` on one machine or two, and what must hold when something ended them."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from children import Child
from harness import Harness, Inject, Job, differing, newest_sound, results, unsound

ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo"}
LONGEST = 600.0
"""seconds that a start of several processes may take on a machine that does other things too"""
GOING = (0, 75)


@dataclass
class Machines:
    """One launcher each, of ``processes`` workers."""

    children: list[Child]
    processes: int

    def workers(self, machine: int) -> list[psutil.Process]:
        """Of a machine, by rank; waited for where none was started yet. Those that are done are missing."""
        while not self.children[machine].ended(0.005):
            with suppress(psutil.NoSuchProcess):
                found = psutil.Process(self.children[machine].pid).children()
                if len(found) == self.processes or (found and self.children[machine].screen):
                    return sorted(found, key=lambda one: (one.create_time(), one.pid))
        return []

    def wait(self) -> list[int]:
        return [child.wait(LONGEST) for child in self.children]

    @property
    def screen(self) -> str:
        return "".join(f"--- machine {number}\n{child.screen[-2500:]}" for number, child in enumerate(self.children))


def launched(
    harness: Harness, job: Job, output: Path, machines: int = 1, workers: dict[str, Inject] | None = None
) -> Machines:
    """Two processes on one machine, or one on each of two, which meet on loopback. ``workers``: what is injected, by
    rank."""
    processes = 2 if machines == 1 else 1
    options = ["--processes", str(processes)]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            options += ["--nodes", str(machines), "--rendezvous", f"127.0.0.1:{free.getsockname()[1]}"]
    command = ["launch", str(job.recipe), *job.overrides, f"output={output}", *options]
    ranks = [["--node-rank", str(number)] if machines > 1 else [] for number in range(machines)]
    inject: Inject = {"fork_workers": {"inject": workers or {}}}
    started = [harness.start_command([*command, *rank], inject, environment=ENVIRONMENT) for rank in ranks]
    return Machines(started, processes)


def left_running(machines: Machines, patience: float = 300.0) -> list[int]:
    """Processes of a machine that still run after so many seconds."""
    sessions = {child.pid for child in machines.children}
    end = time.monotonic() + patience
    while True:
        found = []
        for process in psutil.process_iter(["status"]):
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) in sessions and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def reached(output: Path) -> int:
    """The last step whose numbers were written."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)


def whole_of_two(harness: Harness, job: Job) -> dict[str, str]:
    output = harness.place / f"launched-{job.name}"
    if not output.exists():
        machines = launched(harness, job, output)
        assert machines.wait() == [0], machines.screen
    return results(output)


def after(
    harness: Harness,
    job: Job,
    output: Path,
    running: Machines,
    allowed: set[int],
    wanted: dict[str, str],
    statuses: list[int],
) -> str | None:
    """Wait for the end of what something has ended, and start it again: what is wrong with either, or None.

    ``allowed``: the launchers' exit statuses that may be; those there were are added to ``statuses``. ``wanted``: the
    results of a run that nothing disturbed.
    """
    found = running.wait()
    statuses.extend(found)
    if set(found) - allowed:
        return f"exit statuses {found}\n{running.screen}"
    if "Traceback" in running.screen:
        return f"a traceback\n{running.screen}"
    if left := left_running(running):
        return f"still running: {left}\n{running.screen}"
    saved = newest_sound(output)
    if saved < reached(output) - 1:
        return f"step {reached(output)} was taken, and step {saved} is the newest that is saved"
    wrong = next(filter(None, map(unsound, (output / "checkpoints").glob("checkpoint-*"))), None)
    if wrong:
        return wrong
    again = launched(harness, job, output, len(running.children))
    if set(again.wait()) != {0}:
        return f"exit statuses {again.wait()} of the next start\n{again.screen}"
    if saved and f"checkpoint-{saved}" not in again.screen and "finished" not in again.screen:
        return f"not gone on from step {saved}\n{again.screen}"
    wrong_files = differing(results(output), wanted)
    return f"differs in {wrong_files}" if wrong_files else None
