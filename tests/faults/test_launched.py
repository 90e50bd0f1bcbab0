"""``hybrid-ft launch`` on one machine and on two: whatever is killed, statuses tell it, nothing is left running, and
the same command ends with the same files."""

import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from children import Child
from harness import Harness, Job, differing, newest_sound, results, unsound

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


def launched(harness: Harness, job: Job, output: Path, machines: int = 1) -> Machines:
    """Two processes on one machine, or one on each of two, which meet on loopback."""
    processes = 2 if machines == 1 else 1
    options = ["--processes", str(processes)]
    if machines > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            options += ["--nodes", str(machines), "--rendezvous", f"127.0.0.1:{free.getsockname()[1]}"]
    command = ["launch", str(job.recipe), *job.overrides, f"output={output}", *options]
    ranks = [["--node-rank", str(number)] if machines > 1 else [] for number in range(machines)]
    inject: dict[str, dict[str, Any]] = {"fork_workers": {}}
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


def wait_for_a_moment(draw: random.Random, machines: Machines, output: Path, early: float) -> str:
    """Any, from the program's start on; or a little after some checkpoint, since most of the
    time libraries are loaded."""
    if draw.random() < early:
        seconds = draw.uniform(0, 4)
        machines.children[0].ended(seconds)
        return f"after {seconds:.2f} s"
    step, seconds = draw.randint(1, 8), draw.uniform(0, 0.6)
    while newest_step(output) < step and not machines.children[0].ended(0.002):
        pass
    time.sleep(seconds)
    return f"{seconds:.3f} s after checkpoint {step}"


def newest_step(output: Path) -> int:
    with suppress(FileNotFoundError):
        names = os.listdir(output / "checkpoints")
        return max((int(name[11:]) for name in names if name[:11] == "checkpoint-"), default=0)
    return 0


def a_worker(draw: random.Random, machines: Machines) -> set[int]:
    machine = draw.randrange(len(machines.children))
    for process in (workers := machines.workers(machine))[draw.randrange(len(workers) or 1) :][:1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return set(GOING)


def the_launcher(draw: random.Random, machines: Machines) -> set[int]:
    """SIGKILL: its workers are to end by themselves."""
    draw.choice(machines.children).kill(signal.SIGKILL)
    return {*GOING, -signal.SIGKILL}


def a_request(draw: random.Random, machines: Machines) -> set[int]:
    """SIGTERM to one launcher; what has not come to its first line ends by it."""
    child = draw.choice(machines.children)
    early = not child.screen
    child.kill(signal.SIGTERM)
    return {*GOING, *([-signal.SIGTERM] if early else [])}


def a_machine(draw: random.Random, machines: Machines) -> set[int]:
    """All that runs on it, at once."""
    child = draw.choice(machines.children)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return {*GOING, -signal.SIGKILL}


EVENTS: dict[str, Callable[[random.Random, Machines], set[int]]] = {
    "a worker": a_worker,
    "the launcher": the_launcher,
    "SIGTERM": a_request,
    "a machine": a_machine,
}


def whole_of_two(harness: Harness, job: Job) -> dict[str, str]:
    output = harness.place / f"launched-{job.name}"
    if not output.exists():
        machines = launched(harness, job, output)
        assert machines.wait() == [0], machines.screen
    return results(output)


@pytest.mark.faults
@pytest.mark.parametrize(("machines", "full"), [(1, 80), (2, 40)])
def test_killed_under_launch(harness, jobs, count, chance, faults_row, machines, full):
    kinds = [jobs["sft-full"], jobs["dpo-lora"], jobs["sft-lora"].but("fsdp", "train.sharded=true")]
    kinds += [jobs["sft-full"].but("mirror")]
    number_of = count(full)
    wanted = {job.name: whole_of_two(harness, job) for job in kinds[: min(len(kinds), number_of)]}
    statuses: list[int] = []

    def trial(number: int) -> str | None:
        draw, job, place = chance(number), kinds[number % len(kinds)], harness.folder()
        output = place / "run"
        if job.name.endswith("mirror"):
            job = job.but("place", f"mirror={place / 'mirror'}")
        what = list(EVENTS)[(number + number // len(EVENTS)) % len(EVENTS)]
        running = launched(harness, job, output, machines)
        # of several machines one that is lost before they meet is missed for five minutes
        when = wait_for_a_moment(draw, running, output, early=0.3 if machines == 1 else 0.0)
        allowed = EVENTS[what](draw, running)
        told = f"{job.name}, {what} {when}"
        found = running.wait()
        statuses.extend(found)
        if set(found) - allowed:
            return f"{told}: exit statuses {found}\n{running.screen}"
        if "Traceback" in running.screen:
            return f"{told}: a traceback\n{running.screen}"
        if left := left_running(running):
            return f"{told}: still running: {left}\n{running.screen}"
        saved = newest_sound(output)
        if saved < reached(output) - 1:
            return f"{told}: step {reached(output)} was taken, and step {saved} is the newest that is saved"
        wrong = next(filter(None, map(unsound, (output / "checkpoints").glob("checkpoint-*"))), None)
        if wrong:
            return f"{told}: {wrong}"
        again = launched(harness, job, output, machines)
        if set(again.wait()) != {0}:
            return f"{told}: exit statuses {again.wait()} of the next start\n{again.screen}"
        if saved and f"checkpoint-{saved}" not in again.screen and "finished" not in again.screen:
            return f"{told}: not gone on from step {saved}\n{again.screen}"
        wrong_files = differing(results(output), wanted[kinds[number % len(kinds)].name])
        return f"{told}: differs in {wrong_files}" if wrong_files else None

    failures = harness.each(range(number_of), trial)
    faults_row(
        f"kills under launch, {machines} machine{'s' * (machines > 1)}",
        "75 or 0, nothing left running, final files identical",
        number_of,
        failures,
        f"{statuses.count(75)} exit 75, {statuses.count(0)} exit 0",
    )
    assert not failures, "\n".join(failures[:10])
