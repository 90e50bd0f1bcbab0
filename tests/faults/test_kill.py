"""kill -9 at any moment: the same command goes on, and ends where the run would have ended."""

import signal
import time
from pathlib import Path

import pytest
from harness import checkpoints, differing, moments, results


def killed_at(harness, job, output: Path, seconds: float) -> bool:
    """Start the job and kill it after so many seconds; whether it was still running then."""
    child = harness.start(job, output)
    time.sleep(seconds)
    killed = child.kill(signal.SIGKILL)
    status = child.wait()
    child.dispose()
    assert status in (0, -signal.SIGKILL), f"exit status {status}\n{child.screen}"
    return killed


@pytest.mark.faults
@pytest.mark.parametrize(("name", "full"), [("sft-full", 70), ("sft-lora", 70), ("dpo-full", 60)])
def test_killed_at_random_moments(harness, jobs, count, chance, faults_row, name, full):
    job, whole, kills = jobs[name], harness.whole(jobs[name]), []

    def trial(number: int) -> str | None:
        output = harness.folder() / "run"
        times = moments(chance(number), whole, 3)
        kills.append(sum(killed_at(harness, job, output, seconds) for seconds in times))
        harness.finish(job, output)
        wrong = differing(results(output), whole.digests)
        return f"killed at {times}: differs in {wrong}" if wrong else None

    failures = harness.each(range(count(full)), trial)
    faults_row(
        f"kill -9 at random moments, {name}",
        "the same command resumes, final files identical",
        count(full),
        failures,
        f"{sum(kills)} kills",
    )


def test_one_kill_and_one_flipped_bit(harness, jobs):
    """The battery's share of the quick tests."""
    job, output = jobs["sft-lora"], harness.folder() / "run"
    child = harness.start(job, output)
    while len(checkpoints(output)) < 2:
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
