"""A kill before each operation on files: whatever half of a save, a start or an export is there, the
same command goes on."""

import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from children import Child
from harness import newest_sound, of_save

SYSCALLS = ("mkdir", "rename", "unlink", "unlinkat", "rmdir", "fsync", "fdatasync", "ftruncate", "write", "pwrite64")
LAST = 8
"""the step of the last save, after which the export comes"""


def operations(harness, job, output: Path) -> list[str]:
    """Of a whole run, in order."""
    log = output.with_suffix(".operations")
    logs = {"log_steps": {"file": str(output.with_suffix(".steps"))}, "log_operations": {"file": str(log)}}
    assert harness.start(job, output, logs).wait() == 0
    return log.read_text().splitlines()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "step", "what"),
    [
        ("sft-full", 0, "before the first save"),
        ("sft-full", 5, "of one save"),
        ("sft-full", LAST, "of the last save and the export"),
        ("sft-lora", LAST, "of the last save and the export"),
        ("dpo-full", 0, "before the first save"),
        ("dpo-full", 5, "of one save"),
    ],
)
def test_killed_at_each_file_operation(harness, jobs, some, faults_row, name, step, what):
    job = jobs[name]
    harness.whole(job)
    lines = operations(harness, job, harness.folder() / "run")
    window = of_save(lines, step)
    assert len(window) > 8, lines

    def trial(number: int) -> str | None:
        output = harness.folder() / "run"
        logs = {"log_steps": {"file": str(output.with_suffix(".steps"))}}
        child = harness.start(job, output, logs | {"die_at_operation": {"number": number}})
        assert child.wait() == -signal.SIGKILL, child.screen
        return after_kill(harness, job, output, lines[number])

    trials = some(list(window))
    failures = harness.each(trials, trial)
    faults_row(
        f"kill -9 at each file operation {what}, {name}", "all resume, final files identical", len(trials), failures
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize(("name", "step"), [("sft-full", 5), ("sft-lora", 5), ("dpo-full", LAST)])
def test_killed_at_each_system_call(harness, jobs, some, faults_row, name, step):
    """The same from outside: it meets the files that compiled code writes, too, and each write to them."""
    job, log = jobs[name], harness.folder() / "calls"
    harness.whole(job)
    child = traced(harness, job, harness.folder() / "run", f"-y -o {log} -e trace=" + ",".join(SYSCALLS))
    if child is None:
        pytest.skip("strace may not attach to a process here")
    assert child.wait() == 0, child.screen
    lines = log.read_text().splitlines()
    calls, seen = [], Counter[str]()
    for line in lines:
        call = re.match(r"\d+ +(\w+)\(", line)
        seen[call[1] if call else ""] += 1
        calls.append((call[1], seen[call[1]], line) if call else None)
    window = [calls[index] for index in of_save(lines, step) if calls[index]]
    assert len(window) > 20, lines

    def trial(call: tuple[str, int, str]) -> str | None:
        output = harness.folder() / "run"
        child = traced(
            harness, job, output, f"-o /dev/null -e trace={call[0]} -e inject={call[0]}:signal=KILL:when={call[1]}"
        )
        assert child is not None and child.wait() == -signal.SIGKILL, child and child.screen
        return after_kill(harness, job, output, call[2])

    trials = some(window)
    failures = harness.each(trials, trial)
    faults_row(
        f"kill -9 at each system call of one save, {name}", "all resume, final files identical", len(trials), failures
    )
    assert not failures, "\n".join(failures[:10])


def after_kill(harness, job, output: Path, operation: str) -> str | None:
    """What is wrong with what is left: more than the step at work is lost, or the run does not go on."""
    taken, saved = len(output.with_suffix(".steps").read_text().splitlines()), newest_sound(output)
    wrong = f"step {taken} was taken, and step {saved} is the newest that is saved" if saved < taken - 1 else None
    wrong = wrong or harness.go_on(job, output)
    return f"killed before {operation}: {wrong}" if wrong else None


def traced(harness, job, output: Path, options: str) -> Child | None:
    """A start with strace attached from its first line on, or None where that is not allowed."""
    child = harness.start(job, output, {"log_steps": {"file": str(output.with_suffix(".steps"))}}, paused=True)
    while not re.search(r"\) T ", Path(f"/proc/{child.pid}/stat").read_text()):
        time.sleep(0.005)
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(child.pid), *options.split()], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    if "attached" not in tracer.stderr.readline():
        tracer.communicate()
        child.dispose()
        return None
    child.kill(signal.SIGCONT)
    child.tracer = tracer
    return child
