"""A number that is not finite, in the loss, a gradient or a weight: the run stops before it has done harm."""

import json
from pathlib import Path

import pytest
import torch
from harness import checkpoints, unsound
from safetensors.torch import load_file


def not_finite_in(checkpoint: Path) -> list[str]:
    """Names of tensors in any file of a checkpoint that hold a NaN or an infinity."""
    found = []
    for file in sorted(checkpoint.rglob("*")):
        tensors = load_file(file) if file.suffix == ".safetensors" else {}
        found += [f"{file.name}:{name}" for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    return found


@pytest.mark.faults
@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_stops_before_the_step(harness, jobs, count, chance, faults_row, what):
    for job in jobs.values():
        harness.whole(job)

    def trial(number: int) -> str | None:
        draw = chance(number)
        job = jobs[draw.choice(sorted(jobs))]
        # from the second on, so that there is a checkpoint to keep
        step, value, place = draw.randint(2, 8), draw.choice(["nan", "inf", "-inf"]), draw.randrange(1000)
        told = f"{job.name}, {value} in {what} {place} at step {step}"
        output = harness.folder() / "run"
        log = output.with_suffix(".steps")
        child = harness.start(
            job,
            output,
            {
                "log_steps": {"file": str(log)},
                "not_finite": {"what": what, "step": step, "value": value, "place": place},
            },
        )
        status = child.wait()
        steps = len(log.read_text().splitlines())
        if status != 4:
            return f"{told}: exit status {status} after {steps} steps\n{child.screen[-2000:]}"
        # a weight goes wrong after its step, and may be noticed then or in the next step's loss
        if steps != (step if what == "weights" else step - 1):
            return f"{told}: {steps} steps were taken"
        kept = checkpoints(output)
        broken = [wrong for checkpoint in kept for wrong in (unsound(checkpoint), *not_finite_in(checkpoint)) if wrong]
        if broken or not kept:
            return f"{told}: kept {[path.name for path in kept]}, of which is wrong: {broken[:3]}"
        if what != "weights" and not rows_file(output):
            return f"{told}: no file of the step's rows"
        wrong = harness.go_on(job, output)
        return f"{told}: when it is over: {wrong}" if wrong else None

    failures = harness.each(range(count(10)), trial)
    faults_row(
        f"NaN or infinity in {what}",
        "exit 4 before the step, good checkpoints kept, rows in a file",
        count(10),
        failures,
    )
    assert not failures, "\n".join(failures[:10])


def rows_file(output: Path) -> list[str]:
    """What a file of the run's folder names as rows of the step."""
    for file in output.glob("*.json"):
        rows = json.loads(file.read_text()).get("rows")
        if isinstance(rows, list) and rows:
            return rows
    return []
