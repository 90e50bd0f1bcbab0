"""kill -9 at any moment: the same command goes on from the last save, and ends where the run would have ended."""

import signal
import time
from pathlib import Path

import pytest
from harness import checkpoints, differing, newest_sound, results


def killed_after(harness, job, output: Path, seconds: float) -> str | None:
    """Start the job and kill it after so many seconds; what is wrong with what is left: more than a step is lost."""
    log, before = output.with_suffix(".steps"), newest_sound(output)
    log.unlink(missing_ok=True)
    child = harness.start(job, output, {"log_steps": {"file": str(log)}})
    time.sleep(seconds)
    child.kill(signal.SIGKILL)
    if child.wait() not in (0, -signal.SIGKILL):
        return f"exit status {child.status}\n{child.screen}"
    # killed before its first line, it has not made the log
    reached = before + (len(log.read_text().splitlines()) if log.exists() else 0)
    saved = newest_sound(output)
    return None if saved >= reached - 1 else f"step {reached} was taken, and step {saved} is the newest that is saved"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("sft-full", 70),
        ("sft-lora", 70),
        ("sft-stream", 40),
        ("dpo-full", 60),
        ("dpo-stream", 20),
        ("kto-lora", 30),
        ("reward-full", 30),
        ("reward-stream", 20),
    ],
)
def test_killed_at_random_moments(harness, every_job, count, chance, faults_row, name, full):
    """Up to three times in a row; every fourth run with processes that load its rows, which outlive it for a while."""
    kinds, kills = [every_job[name]] * 3 + [every_job[name].but("workers", "train.loader_workers=2")], []
    for job in kinds:
        harness.whole(job)

    def trial(number: int) -> str | None:
        draw, job, output = chance(number), kinds[number % 4], harness.folder() / "run"
        times = [draw.uniform(0, harness.whole(job).seconds) for _ in range(draw.randint(1, 3))]
        kills.extend(times)
        wrong = next(filter(None, (killed_after(harness, job, output, seconds) for seconds in times)), None)
        wrong = wrong or harness.go_on(job, output)
        told = ", ".join(f"{seconds:.3f}" for seconds in times)
        return f"{job.name} killed after {told} s: {wrong}" if wrong else None

    failures = harness.each(range(count(full)), trial)
    faults_row(
        f"kill -9 at random moments, {name}",
        "the same command goes on from the last save, final files identical",
        count(full),
        failures,
        f"{len(kills)} kills",
    )
    assert not failures, "\n".join(failures[:10])


def test_one_kill_and_one_flipped_bit(harness, jobs):
    """The battery's share of the quick tests."""
    job, output = jobs["sft-lora"], harness.folder() / "run"
    mark = output.with_suffix(".stalled")
    child = harness.start(job, output, {"stall_in_step": {"step": 4, "seconds": 600.0, "mark": str(mark)}})
    while not mark.exists():
        assert not child.ended(0.005), child.screen
    child.kill(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    newest = checkpoints(output)[-1]
    weights = newest / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    assert f"{newest.name}: {weights.name} is damaged" in harness.finish(job, output).screen
    assert differing(results(output), harness.whole(job).digests) == []
