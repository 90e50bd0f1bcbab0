"""One SFT step on real rows on a CPU: this project's model and trainer against TRL's on transformers' layers.

    python benchmarks/sft_step_cpu.py --rows gsm8k_train.jsonl --columns gsm8k --tokenizer OLMO_TOKENIZER_FOLDER

Both start from the same weights and take the same rows in one optimizer step: forward, backward, clipping, AdamW, the
assembly of the batch included. Here the rows are packed; TRL pads them in micro-batches of 8, its default, because
transformers' layers cannot pack on a CPU. Times are taken in turns, on one thread; memory is the peak over weights,
gradients and optimizer state, each in a process of its own. Nothing is printed if the first losses disagree.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from rich.console import Console
from transformers import OlmoHybridForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer

import hybrid_ft
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer, Plan, arguments
from hybrid_ft.finetune.training.trainer import packs_dataset
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

MICRO_BATCH = 8


@dataclass
class Task:
    """The same for both: rows, weights on disk, tokenizer."""

    recipe: Recipe
    prepared: Prepared
    tokenizer: Any
    base: Path
    folder: Path

    def ours(self) -> Trainer:
        plan, folder = Plan.of(self.recipe, self.prepared), RunFolder(self.folder)
        assert self.prepared.packs is not None
        return PackedSFTTrainer(
            hybrid_ft.load(self.base),
            arguments(self.recipe, plan, folder),
            train_dataset=packs_dataset(self.prepared.train, self.prepared.packs),
            processing_class=self.tokenizer,
            callbacks=[ShowProgress(Console(file=io.StringIO()), self.folder / "metrics.jsonl")],
            folder=folder,
            keep=1,
            stop=StopRequest(),
            origins=str,
        )

    def stock(self) -> Trainer:
        args = SFTConfig(
            output_dir=str(self.folder),
            per_device_train_batch_size=MICRO_BATCH,
            learning_rate=self.recipe.train.learning_rate,
            adam_beta1=self.recipe.train.betas[0],
            adam_beta2=self.recipe.train.betas[1],
            optim="adamw_torch",
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        return SFTTrainer(
            OlmoHybridForCausalLM.from_pretrained(self.base, dtype=torch.float32),
            args,
            train_dataset=self.prepared.train.select_columns(["input_ids", "labels"]),
            processing_class=self.tokenizer,
        )


def one_step(trainer: Trainer) -> tuple[float, int]:
    """Train on every row once; returns the loss and the tokens computed, padding included."""
    batches = iter(trainer.get_train_dataloader())
    micro_batches, trained = trainer.get_batch_samples(batches, 1_000_000, torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    loss = sum(trainer.training_step(trainer.model, batch, trained) for batch in micro_batches)
    trainer._get_grad_norm(trainer.model, trainer._clip_grad_norm(trainer.model))
    trainer.optimizer.step()
    trainer.lr_scheduler.step()
    trainer.optimizer.zero_grad(set_to_none=False)
    return float(loss), sum(batch["input_ids"].numel() for batch in micro_batches)


def ready(trainer: Trainer) -> Trainer:
    trainer.create_optimizer_and_scheduler(1000)
    return trainer


def peak_memory(trainer: Trainer) -> int:
    """Bytes over what stays allocated between steps: weights, gradients, optimizer state."""
    one_step(trainer)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    one_step(trainer)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def prepared_task(options: argparse.Namespace, folder: Path) -> Task:
    source = {"path": options.rows, "columns": options.columns, "count": options.batch}
    tokens = options.batch_tokens
    recipe = Recipe.model_validate(
        {
            "model": {
                "path": options.model,
                "from_scratch": True,
                "tokenizer": options.tokenizer,
                "chat_template": options.chat_template,
            },
            "data": {"sources": [source], "max_length": tokens},
            "train": {"batch_tokens": tokens, "learning_rate": 1e-4},
        }
    )
    tokenizer = load_tokenizer(options.tokenizer)
    base = folder / "base"
    if not base.exists():
        words = -(-len(tokenizer) // 64) * 64
        hybrid_ft.load(options.model, from_scratch=True, vocab_size=words).save_pretrained(base)
    return Task(recipe, prepare(recipe, tokenizer), tokenizer, base, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True, help="a data file")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer folder or hub name")
    parser.add_argument("--columns", help="column mapping of the rows")
    parser.add_argument("--chat-template", default="olmo-instruct")
    parser.add_argument("--model", default="tiny", help="shape: tiny, 190M, 1B, or a folder with a config.json")
    parser.add_argument("--batch", type=int, default=16, help="rows of the step")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a pack")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="append the result as a JSON line")
    parser.add_argument("--memory-of", choices=["ours", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    if options.memory_of:
        print(peak_memory(ready(getattr(prepared_task(options, options.work), options.memory_of)())))
        return
    with tempfile.TemporaryDirectory() as work:
        measure(options, Path(work))


def measure(options: argparse.Namespace, work: Path) -> None:
    task = prepared_task(options, work)
    trainers = {"stock": ready(task.stock()), "ours": ready(task.ours())}
    first = {name: one_step(trainer) for name, trainer in trainers.items()}
    if abs(first["ours"][0] / first["stock"][0] - 1) > 1e-4:
        sys.exit(f"the first losses disagree: {first}")
    real = sum(map(len, task.prepared.train["input_ids"]))
    cpu: dict[str, list[float]] = {name: [] for name in trainers}
    wall: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(options.repeats):
        for name, trainer in trainers.items():
            cpu_began, wall_began = time.process_time(), time.perf_counter()
            one_step(trainer)
            cpu[name].append(time.process_time() - cpu_began)
            wall[name].append(time.perf_counter() - wall_began)
    parameters = sum(parameter.numel() for parameter in trainers["ours"].model.parameters())
    trainers.clear()
    gc.collect()
    memory = {name: memory_of(name, work) for name in cpu}
    result: dict[str, Any] = {
        "model": options.model,
        "parameters": parameters,
        "rows": options.batch,
        "real_tokens": real,
        "loss": first["ours"][0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(
        f"{result['parameters']:,} parameters, {options.batch} rows of {real:,} tokens, first loss {first['ours'][0]:.4f}"
    )
    for name, times in cpu.items():
        seconds = statistics.median(times)
        result[name] = {
            "cpu_seconds": times,
            "wall_seconds": wall[name],
            "padding": 1 - real / first[name][1],
            "peak_memory": memory[name],
        }
        print(
            f"{name:>6}  {real / seconds:8,.0f} real tokens per CPU second  "
            f"CPU {seconds:.2f} s ({min(times):.2f} to {max(times):.2f})  "
            f"wall {statistics.median(wall[name]):.2f} s ({min(wall[name]):.2f} to {max(wall[name]):.2f})  "
            f"padding {1 - real / first[name][1]:.0%}  memory {memory[name] / 2**20:,.0f} MiB"
        )
    ratios = [stock / ours for stock, ours in zip(cpu["stock"], cpu["ours"], strict=True)]
    result["speed_ratio"], result["memory_ratio"] = statistics.median(ratios), memory["ours"] / memory["stock"]
    print(
        f" ratio  {result['speed_ratio']:.1f} times the tokens per CPU second ({min(ratios):.1f} to {max(ratios):.1f}), "
        f"{result['memory_ratio']:.2f} of the memory"
    )
    if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


def memory_of(name: str, work: Path) -> int:
    """In a fresh process whose allocator gives every tensor back to the system at once."""
    command = [sys.executable, *sys.argv, "--memory-of", name, "--work", str(work)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


if __name__ == "__main__":
    main()
