"""A request to stop at any moment: at most the step at work and a save, exit 75, and the same end
by the same command."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import newest_sound

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE = 120.0
"""seconds: a step, a save and this machine's other work; how long it really took is in the table"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "full"),
    [(signal.SIGTERM, 100), (signal.SIGINT, 20), (signal.SIGHUP, 20)],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
def test_stops_at_random_moments(harness, jobs, count, chance, faults_row, number, full):
    names, slowest, statuses = sorted(jobs), [0.0], []
    for job in jobs.values():
        harness.whole(job)

    def trial(one: int) -> str | None:
        job = jobs[names[one % len(names)]]
        whole = harness.whole(job)
        seconds = chance(one).uniform(0, whole.seconds)
        told = f"{job.name} after {seconds:.3f} of {whole.seconds:.3f} s"
        output = harness.folder() / "run"
        log = output.with_suffix(".steps")
        child = harness.start(job, output, {"log_steps": {"file": str(log)}})
        time.sleep(seconds)
        child.kill(number)
        sent = time.monotonic()  # not before: steps are short, and this process may have to wait for a processor
        child.wait(PATIENCE)
        took = time.monotonic() - sent
        steps = [float(line) for line in log.read_text().splitlines()] if log.exists() else []
        taken, after = len(steps), sum(ended > sent for ended in steps)
        slowest[0] = max(slowest[0], took)
        # Python itself, and this harness, take a while before the program's first line; nothing has begun then
        early = child.status == -number and not child.screen and not output.exists()
        statuses.append("early" if early else child.status)
        if not early and child.status not in (75, 0):
            return f"{told}: exit status {child.status}\n{child.screen[-2000:]}"
        if after > 1:
            return f"{told}: {after} steps after the signal"
        if child.status == 75 and newest_sound(output) != taken:
            return f"{told}: {taken} steps were taken, {newest_sound(output)} are saved"
        wrong = harness.go_on(job, output)
        return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(count(full)), trial)
    faults_row(
        f"{number.name} at random moments",
        "at most a step and a save, exit 75 (0 where it was done), resume identical",
        count(full),
        failures,
        f"{statuses.count(75)} exit 75, {statuses.count(0)} exit 0, {statuses.count('early')} before its first line, "
        f"at most {slowest[0]:.1f} s",
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_a_second_signal_stops_at_once(harness, jobs, chance, count, faults_row):
    """In a step that takes minutes; nothing is saved then, and nothing is lost that was."""
    slowest = [0.0]
    for job in jobs.values():
        harness.whole(job)

    def trial(number: int) -> str | None:
        draw = chance(number)
        job, output = jobs[draw.choice(sorted(jobs))], harness.folder() / "run"
        first, second = draw.choice(SIGNALS), draw.choice(SIGNALS)
        mark = output.with_suffix(".stalled")
        stall = {"step": draw.randint(1, 8), "seconds": 600.0, "mark": str(mark)}
        child = harness.start(job, output, {"stall_in_step": stall})
        while not mark.exists():
            assert not child.ended(0.01), child.screen
        child.kill(first)
        while catches(child.pid, second):
            assert not child.ended(0.01), child.screen
        child.kill(second)
        sent = time.monotonic()
        status = child.wait(PATIENCE)
        slowest[0] = max(slowest[0], time.monotonic() - sent)
        told = f"{job.name}, {first.name} and {second.name}"
        if status not in (-second, 128 + second, 75):
            return f"{told}: exit status {status}\n{child.screen[-2000:]}"
        wrong = harness.go_on(job, output)
        return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(count(10)), trial)
    faults_row("a second signal", "stops at once, resume identical", count(10), failures, f"at most {slowest[0]:.1f} s")
    assert not failures, "\n".join(failures[:10])


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal itself; the first one gives the others back to the system."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return bool(next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt")) >> (number - 1) & 1)


@pytest.fixture
def signals_heard():
    """What nohup starts ignores a signal, and so would its children, as its user has asked; not these."""
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.faults
def test_a_signal_while_libraries_load(signals_heard, harness, jobs, count, chance, faults_row):
    """In a process as a user starts it, which loads them for seconds before it does anything."""
    command = [sys.executable, "-m", "hybrid_ft.cli", "sft", str(jobs["sft-full"].recipe)]

    def trial(number: int) -> str | None:
        draw, output = chance(number), harness.folder() / "run"
        process = subprocess.Popen(
            [*command, f"output={output}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        seconds, sent = draw.uniform(0, 2), draw.choice(SIGNALS)
        time.sleep(seconds)
        process.send_signal(sent)
        screen, _ = process.communicate(timeout=PATIENCE)
        if process.returncode != 75:
            return f"{sent.name} after {seconds:.2f} s: exit status {process.returncode}\n{screen[-2000:]}"
        return None

    failures = harness.each(range(count(10)), trial)
    faults_row("a signal while libraries load", "exit 75", count(10), failures)
    assert not failures, "\n".join(failures[:10])
