"""``hybrid-ft launch`` as a user types it, on two processes of a CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import several_machines
from hybrid_ft.finetune.launch import Launch, run, run_stages, seconds_to_stop
from hybrid_ft.finetune.machines.workers import Nodes
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.runs import storage

ROWS = '{"prompt": "ab", "completion": "cd"}\n'
PAIRS = '{"prompt": "ab%d", "chosen": "cd", "rejected": "ef"}\n'


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe of rows and a file of stages, the current one."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text(ROWS * 40)
    Path("pairs.jsonl").write_text("".join(PAIRS % number for number in range(8)))
    train = "train: {steps: 4, batch_tokens: 60, learning_rate: 0.01, save_every: 2}"
    sft = f"model: {{path: {tiny_base}}}\ndata: {{sources: [{{path: rows.jsonl}}], max_length: 60}}\n{train}\n"
    Path("sft.yaml").write_text(sft)
    Path("all.yaml").write_text(
        "stages:\n  - sft: sft.yaml\n  - dpo:\n"
        f"      data: {{sources: [{{path: pairs.jsonl}}], max_length: 60}}\n      {train}\n      dpo: {{pairs_per_step: 4}}\n"
    )
    return tmp_path


def command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hybrid_ft.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(*arguments: str) -> tuple[int, str, str]:
    process = command(*arguments)
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def test_a_mistake_is_one_line_and_starts_nothing(place):
    status, out, err = finished("launch", "sft.yaml", "train.stps=3", "--processes", "2")
    assert (status, out) == (2, "")
    assert err == "error: override train.stps: unknown key train.stps; did you mean train.steps?\n"
    assert not Path("runs").exists()


@pytest.mark.slow
def test_what_the_workers_refuse_is_said_once_with_its_status(place):
    Path("rows.jsonl").write_text(ROWS + '{"prompt": 3}\n')
    status, out, err = finished("launch", "sft.yaml", "--processes", "2")
    assert status == 2 and "Traceback" not in out + err
    assert [line for line in (out + err).splitlines() if "rows.jsonl:2" in line and line.startswith("error")]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_stages_in_two_processes_stopped_and_gone_on_with(place):
    """SIGTERM to the launcher in the first stage: 75 and a save. The same command ends all stages."""
    steps = "sft.train.steps=150"
    metrics = Path("runs/all/1-sft/metrics.jsonl")
    with command("launch", "all.yaml", steps, "--processes", "2") as process:
        try:
            end = time.monotonic() + 600
            while not metrics.exists() or not metrics.read_text():
                assert time.monotonic() < end and process.poll() is None
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (75, ""), out
    assert "stopped by SIGTERM; the same command goes on from here" in out
    saved = sorted(Path("runs/all/1-sft/checkpoints").glob("checkpoint-*"), key=lambda one: int(one.name[11:]))
    assert saved
    assert finished("status", "runs/all")[0] == 75
    status, out, err = finished("launch", "all.yaml", steps, "--processes", "2")
    assert (status, err) == (0, ""), out
    assert "all 2 stages are done" in out and f"going on from {saved[-1].name}" in out
    assert finished("status", "runs/all")[:2] == (0, "runs/all: all stages are finished\n")


def test_a_save_has_the_time_that_it_takes(place, monkeypatch):
    """7B, all weights: 89 GB at the speed of this disk, four times over; and at least ten minutes."""
    probe, probed = storage.probe, []

    def noted(folder: Path, size: int) -> float:
        probed.append((size, probe(folder, size)))
        return probed[-1][1]

    monkeypatch.setattr(storage, "probe", noted)
    recipe = load_recipe("sft.yaml", ["model.path=7B", "model.from_scratch=true", "model.tokenizer=tiny"])
    for one, least, most in ((recipe, 89.1e9, 89.3e9), (load_recipe("sft.yaml"), 1e4, 1e6)):
        seconds = seconds_to_stop(one)
        size, speed = probed[-1]
        assert least < size < most and seconds == pytest.approx(600 + 4 * size / speed)


@pytest.mark.parametrize(
    ("how", "arguments", "message"),
    [
        (Launch(2, Nodes(2, 0, "h:1"), restarts=1), {}, "--restarts: must be 0 with several machines"),
        (Launch(2), {"accept_changes": True}, "--accept-changes: goes with a recipe"),
    ],
)
def test_what_stages_cannot_have_is_refused(place, how, arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run("all.yaml", [], how, None, **arguments)  # type: ignore[arg-type]


def test_a_launcher_in_a_launcher_is_refused(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="starts the processes itself"):
        run("sft.yaml", [], Launch(2), None)  # type: ignore[arg-type]


def loopback() -> str:
    """An address to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def machines(*arguments: str) -> list[subprocess.Popen[str]]:
    """Two, which meet on loopback; the second one first."""
    meet = ["--processes", "1", "--nodes", "2", "--rendezvous", loopback()]
    return [command("launch", *arguments, *meet, "--node-rank", rank) for rank in ("1", "0")]


@pytest.mark.slow
def test_stages_on_two_machines_stopped_and_gone_on_with(place):
    """A signal to either ends both with 75; the same commands end all stages, and a third start finds them done."""
    with open("all.yaml", "a") as file:
        file.write("  - export:\n")
    steps, metrics = "sft.train.steps=60", Path("runs/all/1-sft/metrics.jsonl")
    other, first = machines("all.yaml", steps)
    try:
        end = time.monotonic() + 600
        while not metrics.exists() or not metrics.read_text():
            assert time.monotonic() < end and first.poll() is None
            time.sleep(0.05)
    finally:
        other.send_signal(signal.SIGTERM)
        outs = [one.communicate(timeout=600) for one in (other, first)]
    assert [one.returncode for one in (other, first)] == [75, 75], outs
    assert "Traceback" not in str(outs)
    for _ in range(2):
        other, first = machines("all.yaml", steps)
        outs = [one.communicate(timeout=600) for one in (other, first)]
        assert [one.returncode for one in (other, first)] == [0, 0], outs
        assert outs[1][0].count("all 3 stages are done") == 1 and "all 3 stages" not in outs[0][0]
    records = [json.loads(Path(f"runs/all/{stage}/run.json").read_text()) for stage in ("1-sft", "2-dpo")]
    assert [record["processes"] for record in records] == [2, 2]


def test_a_machine_without_a_first_one_waits_and_says_so(place, monkeypatch):
    monkeypatch.setattr(several_machines, "_ARRIVAL", 0.1)
    with pytest.raises(InputError, match="^--rendezvous: machine 0 does not answer at 127.0.0.1:1;") as refused:
        run("all.yaml", [], Launch(1, Nodes(2, 1, "127.0.0.1:1")), None)  # type: ignore[arg-type]
    assert refused.value.status == 3


@pytest.mark.slow
def test_stages_in_the_processes_that_torchrun_starts(place):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "hybrid_ft.cli"]
    process = subprocess.run([*torchrun, "run", "all.yaml"], check=False, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0 and process.stdout.count("all 2 stages are done") == 1, process.stderr
    records = [json.loads(Path(f"runs/all/{stage}/run.json").read_text()) for stage in ("1-sft", "2-dpo")]
    assert [record["processes"] for record in records] == [2, 2]
    assert finished("status", "runs/all")[:2] == (0, "runs/all: all stages are finished\n")


def test_of_a_launchers_processes_the_first_starts_the_stages(place, monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert run_stages("no such file.yaml", [], None) == 0  # type: ignore[arg-type]
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="no such file"):
        run_stages("no such file.yaml", [], None)  # type: ignore[arg-type]
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (
            {"LOCAL_WORLD_SIZE": "2", "RANK": "0"},
            "a file of stages on several machines is started by hybrid-ft launch --nodes",
        ),
        ({"RANK": "4"}, "RANK is '4' in the environment and must be 0 to 3"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' in the environment"),
    ],
)
def test_what_a_launcher_says_of_stages_is_checked(place, monkeypatch, told, message):
    for name, value in ({"WORLD_SIZE": "4"} | told).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"^{message}") as error:
        run_stages("all.yaml", [], None)  # type: ignore[arg-type]
    assert error.value.status == 3
