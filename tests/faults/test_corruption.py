"""The newest checkpoint damaged on disk: it is noticed, named and set aside, and an older one leads to the same end."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from harness import checkpoints, differing, results

STOPPED = 6


def deleted(file: Path, chance: random.Random) -> None:
    file.unlink()


def truncated(file: Path, chance: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def zeroed(file: Path, chance: random.Random) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def flipped(file: Path, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def stopped_run(harness, job) -> Path:
    """A run stopped after step 6, whose two newest checkpoints are kept."""
    output = harness.folder() / "run"
    child = harness.start(job, output, {"signal_in_step": {"step": STOPPED, "number": signal.SIGTERM}})
    assert child.wait() == 75, child.screen
    assert [path.name for path in checkpoints(output)] == ["checkpoint-5", "checkpoint-6"]
    return output


def files_of(checkpoint: Path) -> list[Path]:
    return sorted(path.relative_to(checkpoint) for path in checkpoint.rglob("*") if path.is_file())


def resumed(harness, job, template: Path, damage, names: list[Path], chance: random.Random) -> str | None:
    """Copy the stopped run, damage files of its newest checkpoint, start it: what is wrong with how that went."""
    output = harness.folder() / "run"
    shutil.copytree(template, output)
    newest = checkpoints(output)[-1]
    for name in names:
        damage(newest / name, chance)
    child = harness.finish(job, output)
    if newest.name not in child.screen or names[0].name not in child.screen and names[0].name != "manifest.json":
        return f"not named: {newest.name}/{names[0]}\n{child.screen}"
    wrong = differing(results(output), harness.whole(job).digests)
    return f"silently wrong in {wrong}" if wrong else None


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full", "sft-lora", "dpo-full"])
def test_each_file_damaged(harness, jobs, some, chance, faults_row, name):
    job = jobs[name]
    harness.whole(job)
    template = stopped_run(harness, job)
    files = files_of(checkpoints(template)[-1])
    assert len(files) > 4
    trials = [(file, damage) for file in files for damage in (deleted, truncated, zeroed, flipped)]
    trials = some(
        [trial for trial in trials if trial[1] is deleted or (checkpoints(template)[-1] / trial[0]).stat().st_size]
    )

    def trial(one) -> str | None:
        return resumed(harness, job, template, one[1], [one[0]], chance(f"{one[0]} {one[1].__name__}"))

    failures = harness.each(trials, trial)
    faults_row(
        f"each file of the newest checkpoint deleted, truncated, zeroed, one bit flipped, {name}",
        "0 silently wrong, all fall back and say so",
        len(trials),
        failures,
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.parametrize(("name", "full"), [("sft-full", 70), ("sft-lora", 70), ("dpo-full", 60)])
def test_random_bits_flipped(harness, jobs, count, chance, faults_row, name, full):
    """Each bit of the checkpoint is as likely as any other, so that most lie in weights and moments."""
    job = jobs[name]
    harness.whole(job)
    template = stopped_run(harness, job)
    newest = checkpoints(template)[-1]
    files = files_of(newest)
    sizes = [(newest / file).stat().st_size for file in files]

    def trial(number: int) -> str | None:
        draw = chance(number)
        return resumed(harness, job, template, flipped, draw.choices(files, sizes), draw)

    failures = harness.each(range(count(full)), trial)
    faults_row(
        f"one random bit of the newest checkpoint, {name}",
        "0 silently wrong, all fall back and say so",
        count(full),
        failures,
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_every_checkpoint_damaged(harness, jobs, chance, faults_row):
    """Then the run begins anew, and says so."""

    def trial(name: str) -> str | None:
        output = stopped_run(harness, jobs[name])
        for checkpoint in checkpoints(output):
            for file in files_of(checkpoint):
                zeroed(checkpoint / file, chance(name))
        screen = harness.finish(jobs[name], output).screen
        if "checkpoint-5" not in screen or "checkpoint-6" not in screen:
            return f"not named\n{screen}"
        wrong = differing(results(output), harness.whole(jobs[name]).digests)
        return f"silently wrong in {wrong}" if wrong else None

    for job in jobs.values():
        harness.whole(job)
    failures = harness.each(jobs, trial)
    faults_row("every checkpoint damaged", "said, begun anew, final files identical", len(jobs), failures)
    assert not failures, "\n".join(failures[:10])
