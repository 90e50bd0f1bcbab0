"""Stopped anywhere in its passes over the data and started again, a run is the run that was not stopped,
to the last bit."""

import itertools
import signal
from pathlib import Path

import pytest
from harness import checkpoints, differing, digest, metrics

STEPS = 12
PLACES = ("in the middle of a pass", "at its edge", "in the second pass")
# what a micro-batch is, and how many of them a step has; pairs are always laid end to end
PORTIONS = {
    "sft": (
        ("data.packing=true", "data.packing=false"),
        ("train.accumulation=1", "train.accumulation=3"),
    ),
    "dpo": (
        ("train.batch_tokens=120", "train.batch_tokens=400"),
        ("dpo.pairs_per_step=3", "dpo.pairs_per_step=14"),
    ),
}
WORKERS = ("train.loader_workers=0", "train.loader_workers=2")


def last_checkpoint(output: Path) -> dict[str, str]:
    """sha256 of its files: weights, optimizer, random state, counters."""
    checkpoint = checkpoints(output)[-1]
    assert checkpoint.name == f"checkpoint-{STEPS}"
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert len(files) > 4
    return {str(path.relative_to(checkpoint)): digest(path.read_bytes()) for path in files}


def step_at(place: str, output: Path) -> int:
    """The last step before the stop."""
    edge = next(int(line["step"]) for line in metrics(output) if line["epoch"] >= 1)
    assert 1 < edge <= STEPS - 2
    return edge + {PLACES[0]: -1, PLACES[1]: 0, PLACES[2]: 1}[place]


@pytest.mark.faults
@pytest.mark.parametrize("name", ["sft-full", "sft-lora", "dpo-full", "dpo-lora"])
def test_stopped_anywhere_in_its_passes(harness, jobs, some, faults_row, name):
    trials = some(list(itertools.product(*PORTIONS[jobs[name].command], WORKERS, PLACES)))
    made = {}
    for keys in {trial[:-1] for trial in trials}:
        values = "-".join(key.rpartition("=")[2] for key in keys)
        made[keys] = jobs[name].but(values, f"train.steps={STEPS}", "train.save_every=4", *keys)
        harness.whole(made[keys])

    def trial(one: tuple[str, ...]) -> str | None:
        job = made[one[:-1]]
        whole, output = harness.whole(job), harness.folder() / "run"
        step = step_at(one[-1], whole.output)
        child = harness.start(job, output, {"signal_in_step": {"step": step, "number": signal.SIGTERM}})
        if child.wait() != 75 or checkpoints(output)[-1].name != f"checkpoint-{step}":
            return f"not stopped after step {step}\n{child.screen}"
        wrong = harness.go_on(job, output)
        if wrong is None and (files := differing(last_checkpoint(output), last_checkpoint(whole.output))):
            wrong = f"differs in {files} of the last checkpoint"
        return f"stopped after step {step}: {wrong}" if wrong else None

    failures = harness.each(trials, trial)
    portions = "packed, padded" if name.startswith("sft") else "small, large micro-batches"
    faults_row(
        f"exact resume, {name}: {portions}; one, several a step; 0, 2 loader workers; middle, edge, second pass",
        "weights, optimizer, random state, loss of each step identical",
        len(trials),
        failures,
    )
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_a_stop_is_felt(harness, jobs):
    """Dropout is on: another seed gives another run, so that a random state that was not restored would show."""
    for name in ("sft-full", "sft-lora"):
        one, other = jobs[name].but("seed-1", "train.seed=1"), jobs[name].but("seed-2", "train.seed=2")
        assert metrics(harness.whole(one).output)[0]["loss"] != metrics(harness.whole(other).output)[0]["loss"]
