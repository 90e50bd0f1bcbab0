"""A disk that is full at the start or becomes so in the middle of a save, and places that cannot be written at all."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import checkpoints, unsound

PLENTY = 64 * 2**20
STORAGE = 5


@contextmanager
def small_disk(harness, size: int) -> Iterator[Path]:
    place = harness.folder() / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


@pytest.fixture(scope="module")
def disks(harness) -> None:
    """Skips where none can be mounted; a trial's thread could not."""
    with small_disk(harness, 4096):
        pass


def unlike_a_refusal(child, status: int, place: Path) -> str | None:
    """Exit 5 and one line that says where, how much is needed and how much is free, and no traceback."""
    lines = [line for line in child.screen.splitlines() if line.startswith("error: ")]
    if status != STORAGE or len(lines) != 1 or "Traceback" in child.screen:
        return f"exit status {status}\n{child.screen[-2000:]}"
    wanted = [str(place), *(rf"[\d.,]+ [kMG]?B ([^.]* )?{word}" for word in ("needed", "free"))]
    missing = [pattern for pattern in wanted if not re.search(pattern, lines[0])]
    return f"{lines[0]} does not say {missing}" if missing else None


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full", "dpo-lora"])
def test_small_from_the_start(harness, jobs, disks, count, chance, faults_row, name):
    job, whole = jobs[name], harness.whole(jobs[name])
    enough = sum(path.stat().st_size for path in whole.output.rglob("*") if path.is_file())
    refused = []

    def trial(number: int) -> str | None:
        size = 4096 * chance(number).randint(1, enough // 4096)
        with small_disk(harness, size) as place:
            child = harness.start(job, place / "run")
            status = child.wait()
            refused.append(status)
            wrong = None if status == 0 else unlike_a_refusal(child, status, place)
            wrong = wrong or next(filter(None, map(unsound, checkpoints(place / "run"))), None)
            if wrong:
                return f"{size:,} bytes: {wrong}"
            remount(place, f"size={PLENTY}")
            wrong = harness.go_on(job, place / "run")
            return f"{size:,} bytes: {wrong}" if wrong else None

    failures = harness.each(range(count(20)), trial)
    faults_row(
        f"a disk too small from the start, 20 sizes, {name}",
        "exit 5, message says path, needed, free; with room the same command ends identical",
        count(20),
        failures,
        f"{refused.count(STORAGE)} refused",
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full", "sft-lora", "dpo-full"])
def test_full_in_the_middle(harness, jobs, disks, count, chance, faults_row, name):
    """Another program fills the disk in some step: a save, the export or a line of the metrics finds no room."""
    job, whole, stopped = jobs[name], harness.whole(jobs[name]), []
    size = sum(path.stat().st_size for path in checkpoints(whole.output)[-1].iterdir())

    def trial(number: int) -> str | None:
        draw = chance(number)
        # from the second step on, so that there is an older checkpoint
        step, left = draw.randint(2, 8), draw.randrange(size * 3 // 2)
        told = f"{left:,} bytes left in step {step}"
        with small_disk(harness, PLENTY) as place:
            output, ballast = place / "run", place / "ballast"
            filling = {"step": step, "left": left, "ballast": str(ballast)}
            child = harness.start(job, output, {"fill_disk_in_step": filling})
            status = child.wait()
            stopped.append(status)
            wrong = None if status == 0 else unlike_a_refusal(child, status, place)
            if wrong is None and not checkpoints(output):
                wrong = "no checkpoint is left"
            wrong = wrong or next(filter(None, map(unsound, checkpoints(output))), None)
            if wrong:
                return f"{told}: {wrong}"
            ballast.unlink()
            wrong = harness.go_on(job, output)
            return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(count(20)), trial)
    faults_row(
        f"disk full in the middle, 20 sizes, {name}",
        "exit 5, message says path, needed, free; older checkpoints whole; then the same command ends identical",
        count(20),
        failures,
        f"{stopped.count(STORAGE)} stopped, {stopped.count(0)} had room",
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_places_that_cannot_be_written(harness, jobs, disks, faults_row):
    """Read-only, and a file where a folder should be."""
    job = jobs["sft-full"]
    harness.whole(job)

    def refused(child, status: int, place: Path, statuses: tuple[int, ...]) -> str | None:
        lines = [line for line in child.screen.splitlines() if line.startswith("error: ")]
        # a long path in a recipe is cut short
        named = str(place) in lines[0] or (status == 2 and "output" in lines[0]) if lines else False
        good = status in statuses and len(lines) == 1 and named and "Traceback" not in child.screen
        return None if good else f"exit status {status}\n{child.screen[-2000:]}"

    def trial(case: str) -> str | None:
        with small_disk(harness, PLENTY) as place:
            output = place / "run"
            if case == "read-only":
                remount(place, "ro")
                child = harness.start(job, output)
                wrong = refused(child, child.wait(), place, (STORAGE,))
                remount(place, "rw")
            else:
                # a mistake in the recipe as much as one of the disk
                file = output if case == "a file" else output / "checkpoints"
                file.parent.mkdir(exist_ok=True)
                file.write_text("mine")
                child = harness.start(job, output)
                wrong = refused(child, child.wait(), place, (2, STORAGE))
                if file.read_text() != "mine":
                    wrong = "the file was written to"
                file.unlink()
            return wrong or harness.go_on(job, output)

    cases = ("read-only", "a file", "a file in place of checkpoints/")
    failures = harness.each(cases, trial)
    faults_row(
        "a folder that cannot be written, a file in its place",
        "exit 5 (2 for a file), one line with the path; then the same command ends identical",
        len(cases),
        failures,
    )
    assert not failures, "\n".join(failures[:10])
