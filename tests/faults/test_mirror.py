"""A machine that is lost with its disk while it copies to a mirror, and a mirror whose disk is full."""

import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from harness import differing, newest_sound, results
from test_disk_full import PLENTY, remount, small_disk


def on_a_fresh_machine(harness, job, whole, mirror: Path) -> str | None:
    """What is wrong with how the job goes on from the mirror alone, or with its end."""
    step, output = newest_sound(mirror), harness.folder() / "fresh"
    screen = harness.finish(job, output).screen
    if step and f"checkpoint-{step}" not in screen and "finished" not in screen:
        return f"not gone on from step {step}\n{screen}"
    wrong = differing(results(output), whole.digests)
    return f"differs in {wrong}" if wrong else None


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full", "sft-lora", "dpo-full"])
def test_killed_at_each_file_operation(harness, jobs, some, faults_row, name):
    """Of the run and of the copying thread together, whose order is another one each time."""
    job, whole = jobs[name], harness.whole(jobs[name])
    log = harness.folder() / "operations"
    first = job.but("mirror", f"mirror={log.with_name('mirror')}")
    assert harness.start(first, log.with_name("run"), {"log_operations": {"file": str(log)}}).wait() == 0
    operations = len(log.read_text().splitlines())
    assert log.read_text().count(str(log.with_name("mirror"))) > 50

    def trial(number: int) -> str | None:
        place = harness.folder()
        mirrored = job.but("mirror", f"mirror={place / 'mirror'}")
        child = harness.start(mirrored, place / "run", {"die_at_operation": {"number": number}})
        status = child.wait()
        if status not in (0, -signal.SIGKILL):
            return f"exit status {status}\n{child.screen}"
        shutil.rmtree(place / "run", ignore_errors=True)
        wrong = on_a_fresh_machine(harness, mirrored, whole, place / "mirror")
        return f"killed before operation {number}: {wrong}" if wrong else None

    trials = some(list(range(0, operations, 3)))
    failures = harness.each(trials, trial)
    faults_row(
        f"kill -9 at each third file operation of a mirrored run, its disk lost, {name}",
        "a fresh machine goes on from the mirror, final files identical",
        len(trials),
        failures,
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full"])
def test_a_mirror_that_has_no_room(harness, jobs, count, chance, faults_row, name):
    """The run ends as if there were none, with 75 and a line; with room the same command copies what is missing."""
    job, whole = jobs[name], harness.whole(jobs[name])
    enough = sum(path.stat().st_size for path in whole.output.rglob("*") if path.is_file())

    def trial(number: int) -> str | None:
        size = 4096 * chance(number).randint(8, enough // 8192)
        with small_disk(harness, size) as disk:
            mirrored = job.but("mirror", f"mirror={disk / 'mirror'}")
            output = disk.with_name("run")
            child = harness.start(mirrored, output, {"short_waits": {"seconds": 10.0}})
            status = child.wait()
            told = "No space left" in child.screen and "lacks" in child.screen
            if status != 75 or not told or "Traceback" in child.screen:
                return f"{size:,} bytes: exit status {status}\n{child.screen}"
            if wrong := differing(results(output), whole.digests):
                return f"{size:,} bytes: differs in {wrong}"
            remount(disk, f"size={PLENTY}")
            subprocess.run(["sync"], check=True)
            screen = harness.finish(mirrored, output).screen
            shutil.rmtree(output)
            wrong = on_a_fresh_machine(harness, mirrored, whole, disk / "mirror")
            return f"{size:,} bytes: {wrong}\n{screen}" if wrong else None

    with small_disk(harness, 4096):
        pass
    failures = harness.each(range(count(10)), trial)
    faults_row(
        f"a mirror without room, 10 sizes, {name}",
        "the run ends identical with 75; with room the same command copies the rest",
        count(10),
        failures,
    )
    assert not failures, "\n".join(failures[:10])
