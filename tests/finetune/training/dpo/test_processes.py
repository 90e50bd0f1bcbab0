"""Two processes take the same steps as one. Run as a script, this file is one of them."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file


@pytest.mark.slow
@pytest.mark.parametrize("pairs_per_step", [8, 1])
def test_processes_do_not_change_the_update(
    pairs_per_step: int, make_trainer: Any, make_pairs: Any, steady_base: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """20 pairs in steps of 8, 8 and 4; and in steps of a single pair, which leaves one process without any."""
    pairs = make_pairs(20 if pairs_per_step > 1 else 3)
    rows = make_trainer(pairs).train_dataset
    rows.save_to_disk(str(tmp_path / "pairs"))
    tiny_tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    results = {}
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        out = tmp_path / f"of-{processes}.safetensors"
        command = [sys.executable, __file__, str(steady_base), str(tmp_path), str(out), str(pairs_per_step)]
        shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [
            subprocess.Popen(
                command,
                env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(processes)
        ]
        try:
            said = [rank.communicate(timeout=1200)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        assert [rank.returncode for rank in ranks] == [0] * processes, said
        results[processes] = load_file(out)
    one, two = results[1], results[2]
    base = load_file(steady_base / "model.safetensors")
    assert one.keys() == two.keys()
    moved = sum(float((one[name] - two[name]).norm() ** 2) for name in one) ** 0.5
    update = sum(float((value - base.get(name, value)).norm() ** 2) for name, value in one.items()) ** 0.5
    assert update > 0.01
    assert moved < 1e-4 * update
    assert float(one["logged_loss"][0]) == pytest.approx(0.6931, abs=1e-3)
    assert one["logged_loss"].tolist() == pytest.approx(two["logged_loss"].tolist(), rel=1e-5)
    assert one["logged_margin"].tolist() == pytest.approx(two["logged_margin"].tolist(), rel=1e-3, abs=1e-5)


def take_steps(base: str, folder: str, out: str, pairs_per_step: int) -> None:
    import torch
    from datasets import load_from_disk
    from rich.console import Console
    from transformers import AutoTokenizer

    import hybrid_ft
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.runs.folder import RunFolder
    from hybrid_ft.finetune.runs.processes import Processes
    from hybrid_ft.finetune.runs.signals import StopRequest
    from hybrid_ft.finetune.training.dpo.metrics import show_progress
    from hybrid_ft.finetune.training.dpo.stage import dpo_arguments, plan_of
    from hybrid_ft.finetune.training.dpo.trainer import PairTrainer

    torch.set_num_threads(1)
    rank, pairs = int(os.environ["RANK"]), load_from_disk(f"{folder}/pairs")
    recipe = Recipe.model_validate(
        {
            "model": {"path": base},
            "data": {"sources": [{"path": "pairs.jsonl"}]},
            # plain descent: AdamW turns the rounding of a gradient near zero into a step of full size
            "train": {"batch_tokens": 100, "learning_rate": 0.05, "steps": 4, "warmup": 0.0, "schedule": "constant"},
            "dpo": {"pairs_per_step": pairs_per_step},
        }
    )
    assert recipe.dpo is not None
    run = RunFolder(f"{folder}/run-{os.environ['WORLD_SIZE']}-{rank}")
    run.processes = Processes.join()
    args = dpo_arguments(recipe, plan_of(recipe, SimpleNamespace(train=pairs)), run)
    args.save_strategy, args.optim = "no", "sgd"
    trainer = PairTrainer(
        hybrid_ft.load(base, dtype=torch.float32),
        args=args,
        train_dataset=pairs,
        processing_class=AutoTokenizer.from_pretrained(f"{folder}/tokenizer"),
        callbacks=[show_progress(Console(file=io.StringIO()), Path(f"{folder}/metrics-{rank}.jsonl"))],
        pairs_per_step=pairs_per_step,
        batch_tokens=100,
        folder=run,
        keep=2,
        stop=StopRequest(),
        origins=str,
    )
    assert trainer.accelerator.num_processes == int(os.environ["WORLD_SIZE"])
    logged: dict[str, list[float]] = {"loss": [], "margin": []}
    log = trainer.log

    def kept(logs: dict[str, float], *rest: Any) -> None:
        log(logs, *rest)
        for name, values in logged.items():
            if name in logs:
                values.append(logs[name])

    trainer.log = kept
    trainer.train()
    if rank == 0:
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(weights | {f"logged_{name}": torch.tensor(values) for name, values in logged.items()}, out)
    run.processes.part()  # as a run does: at its exit a process with an open group may be aborted by its threads


if __name__ == "__main__":
    take_steps(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
