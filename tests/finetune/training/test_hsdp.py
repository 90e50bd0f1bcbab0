"""Divided over each machine's processes, a model takes the steps of one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import losses, quickstart_recipe
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.fsdp import pieces


def test_pieces_are_those_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (pieces(8, True), pieces(8, "machine"), pieces(8, False), pieces(1, "machine")) == (8, 4, 1, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(
        InputError, match="got machine with 3 of 8 processes on this machine; each machine must"
    ) as caught:
        pieces(8, "machine")
    assert caught.value.status == 3


def run(place: Path, output: str, machines: int, processes: int, *keys: str) -> list[int]:
    """The exit statuses of the command's processes, started as two machines on this one would start it."""
    command = [sys.executable, "-m", "hybrid_ft.cli", "sft", "r.yaml", f"output={output}", *keys]
    if machines * processes == 1:
        return [subprocess.run(command, cwd=place, check=False, capture_output=True).returncode]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count = machines * processes
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(count):
        env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % processes)}
        with (place / f"{output}-{rank}.log").open("w") as screen:
            ranks.append(subprocess.Popen(command, cwd=place, env=env, stdout=screen, stderr=subprocess.STDOUT))
    try:
        return [rank.wait(timeout=1200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
def test_two_machines_of_two_take_the_steps_of_one_process(tmp_path: Path, root: Path) -> None:
    """Also where they go on from a checkpoint, the tokens of each micro-batch shared by the two of a machine."""
    quickstart_recipe(tmp_path, root, 160, "path: tiny", "tokens_per_step: 3072, schedule: constant, warmup: 0")
    assert run(tmp_path, "one", 1, 1) == [0]
    for how in (["train.steps=2"], ["train.sequence_parallel=2", "--extend"]):
        assert run(tmp_path, "four", 2, 2, "train.sharded=machine", *how) == [0] * 4, (
            tmp_path / "four-0.log"
        ).read_text()
    said = (tmp_path / "four-0.log").read_text()
    assert "4, the model in 2 pieces (FSDP2); each micro-batch's tokens lie with 2" in said

    assert len(losses(tmp_path / "one")) == 4 and losses(tmp_path / "four") == pytest.approx(
        losses(tmp_path / "one"), rel=2e-4
    )
    for step in (2, 4):
        one, four = (
            {
                name: tensor.double()
                for file in ("model.safetensors", "optimizer-00001.safetensors")
                for name, tensor in load_file(tmp_path / output / f"checkpoints/checkpoint-{step}" / file).items()
            }
            for output in ("one", "four")
        )
        assert one.keys() == four.keys()
        assert all(one[name].shape == four[name].shape for name in one)
        gradients = [name for name in one if name.endswith("exp_avg")]
        apart = sum(float((one[name] - four[name]).norm() ** 2) for name in gradients) ** 0.5
        assert apart < 1e-3 * sum(float(one[name].norm() ** 2) for name in gradients) ** 0.5
