"""``hybrid-ft launch`` on one machine and on two: whatever is killed, statuses tell it, nothing is left running, and
the same command ends with the same files."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from launches import GOING, Machines, after, launched, whole_of_two


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
        wrong = after(harness, job, output, running, allowed, wanted[kinds[number % len(kinds)].name], statuses)
        return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(number_of), trial)
    faults_row(
        f"kills under launch, {machines} machine{'s' * (machines > 1)}",
        "75 or 0, nothing left running, final files identical",
        number_of,
        failures,
        f"{statuses.count(75)} exit 75, {statuses.count(0)} exit 0",
    )
    assert not failures, "\n".join(failures[:10])
