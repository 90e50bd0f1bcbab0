"""A finished run started again does nothing."""

import shutil
from pathlib import Path

import pytest


def seen(folder: Path) -> dict[str, tuple[int, int, int]]:
    places = [folder, *folder.rglob("*")]
    stats = {str(path): path.lstat() for path in places}
    return {name: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats.items()}


@pytest.mark.faults
def test_a_finished_run_writes_nothing(harness, jobs, count, faults_row):
    for job in jobs.values():
        harness.whole(job)

    def trial(number: int) -> str | None:
        job = list(jobs.values())[number % len(jobs)]
        folder = harness.folder()
        shutil.copytree(harness.whole(job).output, folder / "run")
        before = seen(folder)
        screen = harness.finish(job, folder / "run").screen
        after = seen(folder)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed:
            return f"{job.name}: written to {changed}"
        return None if "finished" in screen else f"{job.name} does not say that it is finished: {screen}"

    failures = harness.each(range(count(10)), trial)
    faults_row("restart of a finished run", "exit 0, nothing written", count(10), failures)
    assert not failures, "\n".join(failures[:10])
