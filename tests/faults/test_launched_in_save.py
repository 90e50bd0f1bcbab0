"""Under ``hybrid-ft launch`` a worker or the launcher ends inside a save, before each of its operations on files: the
same command ends with the same files."""

import signal

import pytest
from harness import of_save
from launches import after, launched, whole_of_two

EVENTS = {
    "SIGKILL to the worker that writes": ("self", signal.SIGKILL, {75}),
    "SIGKILL to the worker that waits": ("other", signal.SIGKILL, {75}),
    "SIGTERM to the launcher": ("launcher", signal.SIGTERM, {75}),
    "SIGKILL to the launcher": ("launcher", signal.SIGKILL, {-signal.SIGKILL}),
}
STEP = 5


@pytest.mark.faults
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("name", ["sft-full", "sft-full-sharded", "sft-lora-sharded"])
def test_ended_in_a_save_under_launch(harness, jobs, some, faults_row, name, event):
    kind, sharded, _ = name.partition("-sharded")
    job = jobs[kind].but("fsdp", "train.sharded=true") if sharded else jobs[kind]
    wanted = whole_of_two(harness, job)
    log = harness.folder() / "operations"
    machines = launched(harness, job, log.with_name("run"), workers={"0": {"log_operations": {"file": str(log)}}})
    assert machines.wait() == [0], machines.screen
    lines = log.read_text().splitlines()
    window = of_save(lines, STEP)
    assert len(window) > 8, lines
    whom, number, allowed = EVENTS[event]
    statuses: list[int] = []

    def trial(line: int) -> str | None:
        output = harness.folder() / "run"
        at = {"number": line, "whom": whom, "signal_number": int(number)}
        running = launched(harness, job, output, workers={"0": {"signal_at_operation": at}})
        wrong = after(harness, job, output, running, allowed, wanted, statuses)
        return f"before {lines[line]}: {wrong}" if wrong else None

    trials = some(list(window))
    failures = harness.each(trials, trial)
    faults_row(
        f"{event} before each file operation of a save under launch, {name}",
        "75, nothing left running, final files identical",
        len(trials),
        failures,
    )
    assert not failures, "\n".join(failures[:10])
