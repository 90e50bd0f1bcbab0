"""Several processes: the curve of one, files of one kind, and nothing that hangs when they are stopped or lost."""

import json
import signal
import time
from pathlib import Path

import pytest
from harness import checkpoints, differing, results, unsound

SHARED = "train.sequence_parallel=2"
HOW = {
    "ddp": (),
    "fsdp": ("train.sharded=true",),
    "tokens": (SHARED,),
    "tokens-fsdp": (SHARED, "train.sharded=true"),
}
CASES = {
    "sft-packed": ("sft-full", ("train.steps=6", "train.accumulation=2")),
    "sft-padded": (
        "sft-full",
        ("train.steps=6", "data.packing=false", "train.batch_size=3", "train.rows_per_step=6"),
    ),
    "sft-weights": ("sft-weights", ("train.steps=6", "train.accumulation=2")),
    "sft-stream": ("sft-stream", ("train.steps=6", "train.accumulation=3")),
    "sft-lora": ("sft-lora", ("train.steps=6", "model.lora.dropout=0", "train.accumulation=2")),
    "sft-bfloat16": ("sft-full", ("train.steps=6", "model.dtype=bfloat16", "train.accumulation=2")),
    "sft-muon": ("sft-full", ("train.steps=6", "train.optimizer=muon", "train.accumulation=2")),
    "dpo": ("dpo-full", ("train.steps=6", "train.learning_rate=1e-3")),
    "dpo-lora": ("dpo-lora", ("train.steps=6",)),
    "dpo-stream": ("dpo-stream", ("train.steps=6", "train.learning_rate=1e-3")),
    "dpo-stream-lora": ("dpo-stream", ("train.steps=6", "train.learning_rate=1e-3", "model.lora.rank=4")),
}
OF_SCORES = {"reward-stream": ("reward-stream", ("train.steps=6", "evaluate.answers=0", "train.learning_rate=1e-3"))}
# a dropout mask is another in every process, so the base of these has none
# measured at the end as well, by process 0 alone
STEADY = ("evaluate.every=4", "data.eval.count=4", "evaluate.answers=2", "evaluate.max_new_tokens=4")


def curve(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "loss", "eval_loss", "tokens", "learning_rate", "margin", "accuracy", "pairs")
    return [{name: line[name] for name in names if name in line} for line in lines]


def shape_of(output: Path) -> dict[str, list[str]]:
    """Every file of the run but those that lie in the folders above the results, and what tensors it holds."""
    from safetensors import safe_open

    found = {}
    for file in sorted(path for path in output.rglob("*") if path.is_file()):
        kinds = []
        if file.suffix == ".safetensors" and file.name != "random_state.safetensors":
            with safe_open(file, framework="pt") as opened:
                kinds = [f"{name} {opened.get_slice(name).get_dtype()}" for name in sorted(opened.keys())]
        found[str(file.relative_to(output))] = kinds
    return found


def run_in(harness, job, output: Path, count: int = 2) -> None:
    ranks = harness.launch(job, output, count)
    assert ranks.wait() == [0] * count, ranks.screen


@pytest.mark.faults
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "case",
    ["sft-packed", "sft-stream", "sft-weights", "sft-muon", "dpo", "dpo-stream", "dpo-stream-lora", "reward-stream"],
)
def test_two_processes_take_the_steps_of_one(harness, steady_jobs, case, how):
    one_takes_the_steps_of_two(harness, steady_jobs, case, how)


@pytest.mark.faults
@pytest.mark.parametrize("case", ["sft-packed", "dpo"])
def test_two_teams_of_two_do(harness, steady_jobs, case):
    one_takes_the_steps_of_two(harness, steady_jobs, case, "tokens", count=4)


@pytest.mark.faults
def test_a_run_goes_on_with_another_number_of_processes_that_share(harness, steady_jobs):
    """Stopped in two processes that share each micro-batch; then one alone goes on. Each step's loss is that of one."""
    name, both = CASES["sft-weights"]
    job = steady_jobs[name].but("sft-weights-alone", *STEADY, *both)
    one, output = harness.whole(job).output, harness.folder() / "run"
    mark = output.with_suffix(".stalled")
    stall = {"step": 3, "seconds": 3.0, "mark": str(mark)}  # the signals come in time
    shared = steady_jobs[name].but("shared", *STEADY, *both, SHARED)
    ranks = harness.launch(shared, output, inject={1: {"stall_in_step": stall}})
    while not mark.exists():
        assert not ranks.children[1].ended(0.02), ranks.screen
    for child in ranks.children:
        child.kill(signal.SIGTERM)
    assert ranks.wait() == [75, 75], ranks.screen
    screen = harness.finish(job, output).screen
    assert "processes 1, was 2: a step is the same rows, and rounds differently" in screen, screen
    for line, other in zip(curve(one), curve(output), strict=True):
        assert other == pytest.approx(line, rel=2e-4, abs=1e-5), (line, other)
    assert shape_of(one) == shape_of(output)


def one_takes_the_steps_of_two(harness, jobs, case: str, how: str, count: int = 2) -> None:
    """The loss of every step, the held-out losses, and the same files with the same tensors in them."""
    name, both = (CASES | OF_SCORES)[case]
    one = harness.whole(jobs[name].but(f"{case}-alone", *STEADY, *both)).output
    two = harness.folder() / "run"
    run_in(harness, jobs[name].but(f"{case}-{how}", *STEADY, *both, *HOW[how]), two, count)
    ones, twos = curve(one), curve(two)
    assert len(ones) >= 6 and len(ones) == len(twos)
    for line, other in zip(ones, twos, strict=True):
        assert line.keys() == other.keys()
        assert other == pytest.approx(line, rel=2e-4, abs=1e-5), (line, other)
    assert shape_of(one) == shape_of(two)


@pytest.mark.parametrize(
    ("case", "how"),
    [
        # one with a bit of everything is fast
        pytest.param(case, how, marks=[] if (case, how) == ("sft-weights", "tokens-fsdp") else pytest.mark.faults)
        for case in ("sft-weights", "sft-stream", "dpo", "dpo-stream")
        for how in ("tokens", "tokens-fsdp")
    ],
)
def test_two_processes_that_share_each_micro_batch_take_the_steps_of_one(harness, steady_jobs, case, how):
    one_takes_the_steps_of_two(harness, steady_jobs, case, how)


@pytest.mark.faults
def test_all_kinds_of_runs_in_two_processes(harness, steady_jobs, some, faults_row):
    trials = [(case, how) for case in CASES for how in HOW if case != "sft-padded" or "tokens" not in how]
    chosen = some(trials)
    failures = []
    for case, how in chosen:
        try:
            one_takes_the_steps_of_two(harness, steady_jobs, case, how)
        except AssertionError as error:
            failures.append(f"{case} {how}: {error}")
    faults_row(
        "two processes against one (DDP, FSDP2)", "the same losses to 2e-4, the same files", len(chosen), failures
    )
    assert not failures, "\n".join(failures[:10])


def whole_of_two(harness, job) -> dict[str, str]:
    output = harness.place / f"whole-of-two-{job.name}"
    if not output.exists():
        run_in(harness, job, output)
    return results(output)


def finish_in_two(harness, job, output: Path, wanted: dict[str, str]) -> str | None:
    """Start both again by the same command; what is wrong with what they leave."""
    for checkpoint in checkpoints(output)[-1:]:
        if wrong := unsound(checkpoint):
            return wrong
    ranks = harness.launch(job, output)
    statuses = ranks.wait()
    if statuses != [0, 0]:
        return f"exit statuses {statuses} of the next start\n{ranks.screen[-3000:]}"
    wrong_files = differing(results(output), wanted)
    return f"differs in {wrong_files}" if wrong_files else None


@pytest.mark.faults
def test_skewed_signals_never_hang(harness, jobs, count, chance, faults_row):
    """SIGTERM to one process, and to the other up to two seconds later."""
    kinds = [jobs["sft-full"], jobs["dpo-full"], jobs["sft-lora"].but("fsdp", "train.sharded=true")]
    wanted = {job.name: whole_of_two(harness, job) for job in kinds}
    seconds = {job.name: 1.6 * harness.whole(job).seconds for job in kinds}

    def trial(number: int) -> str | None:
        draw, job = chance(number), kinds[number % len(kinds)]
        output, after, skew = harness.folder() / "run", draw.uniform(0, seconds[job.name]), draw.uniform(0, 2)
        first = draw.randrange(2)
        ranks = harness.launch(job, output)
        time.sleep(after)
        ranks.children[first].kill(signal.SIGTERM)
        time.sleep(skew)
        ranks.children[1 - first].kill(signal.SIGTERM)
        statuses = ranks.wait()
        told = f"{job.name}, rank {first} after {after:.2f} s, the other {skew:.2f} s later"
        if ranks.hung:
            return f"{told}: {ranks.hung}"
        if set(statuses) - {0, 75}:
            return f"{told}: exit statuses {statuses}\n{ranks.screen[-3000:]}"
        wrong = finish_in_two(harness, job, output, wanted[job.name])
        return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(count(50)), trial)
    faults_row("two ranks: skewed SIGTERM", "0 hangs, newest checkpoint whole, resume identical", count(50), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_a_lost_process_ends_the_run(harness, jobs, count, chance, faults_row):
    kinds = [jobs["sft-full"].but("fsdp", "train.sharded=true"), jobs["dpo-lora"]]
    wanted = {job.name: whole_of_two(harness, job) for job in kinds}
    seconds = {job.name: 1.6 * harness.whole(job).seconds for job in kinds}

    def trial(number: int) -> str | None:
        draw, job = chance(number), kinds[number % len(kinds)]
        output, after, lost = harness.folder() / "run", draw.uniform(0, seconds[job.name]), draw.randrange(2)
        ranks = harness.launch(job, output)
        time.sleep(after)
        ranks.children[lost].kill(signal.SIGKILL)
        ranks.wait()
        told = f"{job.name}, rank {lost} after {after:.2f} s"
        if ranks.hung:
            return f"{told}: {ranks.hung}"
        wrong = finish_in_two(harness, job, output, wanted[job.name])
        return f"{told}: {wrong}" if wrong else None

    failures = harness.each(range(count(20)), trial)
    faults_row("two ranks: one killed", "0 hangs, newest checkpoint whole, resume identical", count(20), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_tokens_are_kept_once_by_two(harness, jobs, count, chance, faults_row):
    """One of two processes is killed while rows are prepared; then both prepare them, and the next start reads them."""
    wanted = whole_of_two(harness, jobs["sft-full"])

    def trial(number: int) -> str | None:
        place, lost = harness.folder(), chance(number).randrange(2)
        output, kept = place / "run", place / "kept"
        job = jobs["sft-full"].but(f"kept-{number}", f"data.cache={kept}")
        ranks = harness.launch(job, output)
        while not list(kept.glob(".*")) and time.monotonic() < ranks.children[0].began + 300:
            time.sleep(0.001)
        ranks.children[lost].kill(signal.SIGKILL)
        ranks.wait()
        if ranks.hung:
            return f"rank {lost}: {ranks.hung}"
        if wrong := finish_in_two(harness, job, output, wanted):
            return f"rank {lost}: {wrong}"
        (entry,) = kept.iterdir()
        made = (entry / "rows.arrow").stat().st_mtime_ns
        again = finish_in_two(harness, job, place / "again", wanted)
        same = list(kept.iterdir()) == [entry] and (entry / "rows.arrow").stat().st_mtime_ns == made
        return again or (None if same else "the tokens were made again")

    failures = harness.each(range(count(10)), trial)
    faults_row("two ranks: killed while tokens are kept", "whole or not there, then read", count(10), failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_number_that_is_not_finite_in_one_process_stops_all(harness, jobs, how, faults_row):
    job, output = jobs["sft-full"].but(f"nan-{how}", *HOW[how]), harness.folder() / "run"
    wrong = {"not_finite": {"what": "loss", "step": 4, "value": "nan", "place": 0}}
    ranks = harness.launch(job, output, inject={1: wrong})
    failures = []
    if (statuses := ranks.wait()) != [4, 4]:
        failures = [f"exit statuses {statuses}\n{ranks.screen}"]
    elif not (output / "not-finite-step-4-process-1.json").exists() or "in another process" not in ranks.screen:
        failures = [f"it is not told\n{ranks.screen}"]
    elif [checkpoint.name for checkpoint in checkpoints(output)] != ["checkpoint-2", "checkpoint-3"]:
        failures = [f"other checkpoints: {checkpoints(output)}"]
    faults_row(f"NaN in the loss of one rank ({how})", "all stop before the step, exit 4", 1, failures)
    assert not failures, "\n".join(failures[:10])


@pytest.mark.faults
def test_a_process_that_hangs_is_noticed(harness, jobs, faults_row):
    """The other one waits for it in a collective call. Both end, and say what they were doing."""
    job, output = jobs["sft-full"], harness.folder() / "run"
    wanted, soon = whole_of_two(harness, job), {"patience": {"seconds": 6.0}}
    stall = {"step": 5, "seconds": 200.0, "mark": str(output.with_suffix(".stalled"))}
    ranks = harness.launch(job, output, inject={0: soon, 1: soon | {"stall_in_step": stall}})
    statuses, failures = ranks.wait(), []
    if ranks.hung or set(statuses) - {75}:
        failures = [f"{ranks.hung}, exit statuses {statuses}\n{ranks.screen}"]
    elif "stall" not in (output / "hang-1.txt").read_text():
        failures = [f"the stacks do not show it\n{ranks.screen}"]
    elif wrong := finish_in_two(harness, job, output, wanted):
        failures = [wrong]
    faults_row("two ranks: one hangs", "noticed, stacks dumped, exit 75, resume identical", 1, failures)
    assert not failures, "\n".join(failures[:10])
