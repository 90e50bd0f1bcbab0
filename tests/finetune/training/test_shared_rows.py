"""Pairs and quantised bases, their micro-batches' tokens shared by two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import losses
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.load import load_recipe

ROWS = {"sft": "train", "dpo": "preferences"}


def recipe(place: Path, root: Path, kind: str, model: str) -> None:
    """``r.yaml``: four steps on the quickstart's first rows, or pairs."""
    text = (root / f"datasets/quickstart/{ROWS[kind]}.jsonl").read_text().splitlines()[:160]
    (place / "rows.jsonl").write_text("\n".join(text) + "\n")
    train = {"steps": 4, "learning_rate": 1.0e-3, "save_every": 4, "schedule": "constant", "warmup": 0}
    keys = ", ".join(f"{key}: {value}" for key, value in train.items())
    batch = "batch_tokens: 384, tokens_per_step: 3072" if kind == "sft" else "batch_tokens: 768"
    (place / "r.yaml").write_text(
        f"model: {{path: tiny{model}}}\ndata: {{sources: [{{path: rows.jsonl}}], max_length: 192}}\n"
        f"train: {{{keys}, {batch}}}\n" + ("dpo: {pairs_per_step: 8}\n" if kind == "dpo" else "")
    )


def run(place: Path, kind: str, output: str, processes: int, *keys: str) -> None:
    """The command, as a launcher would start it."""
    command = [sys.executable, "-m", "hybrid_ft.cli", kind, "r.yaml", f"output={output}", *keys]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = []
    for rank in range(processes):
        env = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        with (place / f"{output}-{rank}.log").open("w") as screen:
            ranks.append(subprocess.Popen(command, cwd=place, env=env, stdout=screen, stderr=subprocess.STDOUT))
    try:
        assert [rank.wait(timeout=400) for rank in ranks] == [0] * processes, (place / f"{output}-0.log").read_text()
    finally:
        for rank in ranks:
            rank.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "quantize"), [("dpo", None), ("sft", "nf4"), ("dpo", "nf4")])
def test_two_processes_take_the_steps_of_one(tmp_path: Path, root: Path, kind: str, quantize: str | None) -> None:
    """In copies and in pieces."""
    if quantize:
        pytest.importorskip("bitsandbytes")
    adapters = f", quantize: {quantize}" if quantize else ""
    recipe(tmp_path, root, kind, f", lora: {{rank: 4, alpha: 8}}{adapters}")
    run(tmp_path, kind, "one", 1)
    run(tmp_path, kind, "copies", 2, "train.sequence_parallel=2")
    run(tmp_path, kind, "pieces", 2, "train.sequence_parallel=2", "train.sharded=true")
    wanted, exact = losses(tmp_path / "one"), load_file(tmp_path / "one/adapter/adapter_model.safetensors")
    assert len(wanted) == 4
    for output in ("copies", "pieces"):
        said = (tmp_path / f"{output}-0.log").read_text()
        assert "each micro-batch's tokens lie with 2" in said
        assert losses(tmp_path / output) == pytest.approx(wanted, rel=2e-4)
        found = load_file(tmp_path / output / "adapter/adapter_model.safetensors")
        assert found.keys() == exact.keys()
        apart = sum(float((found[name] - exact[name]).double().norm() ** 2) for name in exact) ** 0.5
        assert apart < 1e-2 * sum(float(tensor.double().norm() ** 2) for tensor in exact.values()) ** 0.5


def test_int8_is_not_shared(tmp_path: Path, root: Path) -> None:
    """Its products round a token's numbers by those of the tokens beside it: losses of pairs
    differed by a hundredth."""
    recipe(tmp_path, root, "dpo", ", lora: {rank: 4}, quantize: int8")
    with pytest.raises(InputError, match=r"train\.sequence_parallel: got 2; int8 rounds a token by the others"):
        load_recipe(str(tmp_path / "r.yaml"), ["train.sequence_parallel=2"])
    assert load_recipe(str(tmp_path / "r.yaml")).model.quantize == "int8"


@pytest.mark.slow
def test_an_adapter_of_an_int8_base_is_saved(tmp_path: Path, root: Path) -> None:
    """Opened in plain transformers it agrees to int8's own rounding, which a last bit of float32 moves
    by half a hundredth."""
    pytest.importorskip("bitsandbytes")
    recipe(tmp_path, root, "sft", ", lora: {rank: 4, alpha: 8}, quantize: int8")
    run(tmp_path, "sft", "one", 1)
    assert (tmp_path / "one/adapter").is_dir()
