"""An SFT step on a CPU beside TRL's trainer on transformers' layers.

    python benchmarks/cpu/sft_step.py --rows gsm8k_train.jsonl --columns gsm8k --tokenizer OLMO_TOKENIZER_FOLDER

Both start from the same weights and take the same rows in one optimizer step: forward, backward, clipping, AdamW, the
assembly of the batch included. Here the rows are packed; TRL pads them in micro-batches of 8, its default, because
transformers' layers cannot pack on a CPU. Times are taken in turns, on one thread; memory is the peak over weights,
gradients and optimizer state, each in a process of its own. Nothing is printed if the first losses disagree.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from rich.console import Console
from transformers import OlmoHybridForCausalLM, Trainer
from trl import SFTConfig, SFTTrainer

import hybrid_ft
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training.packs import packs_dataset
from hybrid_ft.finetune.training.sft.stage import plan_of, sft_arguments, show_progress
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer
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

    def ours(self, model: Any = None) -> Trainer:
        plan, folder = plan_of(self.recipe, self.prepared), RunFolder(self.folder)
        assert self.prepared.packs is not None
        return PackedSFTTrainer(
            hybrid_ft.load(self.base) if model is None else model,
            sft_arguments(self.recipe, plan, folder),
            train_dataset=packs_dataset(self.prepared.train, self.prepared.packs),
            processing_class=self.tokenizer,
            callbacks=[show_progress(Console(file=io.StringIO()), self.folder / "metrics.jsonl")],
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


def prepared_task(options: argparse.Namespace, folder: Path) -> Task:
    source = {"path": options.rows, "columns": options.columns, "count": options.batch}
    tokens = options.batch_tokens
    recipe = Recipe.model_validate(
        {
            "model": common.model_section(options),
            "data": {"sources": [source], "max_length": tokens},
            "train": {"batch_tokens": tokens, "learning_rate": 1e-4},
        }
    )
    tokenizer = load_tokenizer(options.tokenizer)
    base = common.random_base(options, tokenizer, folder)
    return Task(recipe, prepare(recipe, tokenizer), tokenizer, base, folder)


def side(options: argparse.Namespace, work: Path, name: str) -> Callable[[], object]:
    return partial(one_step, common.ready(getattr(prepared_task(options, work), name)()))


def main() -> None:
    parser = common.parser(__doc__)
    common.add_step_options(parser, ("ours", "stock"), repeats=5)
    parser.add_argument("--rows", required=True, help="a data file")
    parser.add_argument("--columns", help="column mapping of the rows")
    parser.add_argument("--batch", type=int, default=16, help="rows of the step")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="tokens of a pack")
    common.run_step_benchmark(parser.parse_args(), side, measure)


def measure(options: argparse.Namespace, work: Path) -> None:
    task = prepared_task(options, work)
    trainers = {"stock": common.ready(task.stock()), "ours": common.ready(task.ours())}
    first = {name: one_step(trainer) for name, trainer in trainers.items()}
    if abs(first["ours"][0] / first["stock"][0] - 1) > 1e-4:
        sys.exit(f"the first losses disagree: {first}")
    real = sum(map(len, task.prepared.train["input_ids"]))
    taken = common.in_turns({name: partial(one_step, trainer) for name, trainer in trainers.items()}, options.repeats)
    parameters = sum(parameter.numel() for parameter in trainers["ours"].model.parameters())
    trainers.clear()
    gc.collect()
    result: dict[str, Any] = {
        "model": options.model,
        "parameters": parameters,
        "rows": options.batch,
        "real_tokens": real,
        "loss": first["ours"][0],
        **common.versions(),
    }
    print(f"{parameters:,} parameters, {options.batch} rows of {real:,} tokens, first loss {first['ours'][0]:.4f}")
    memory = {name: common.memory_of(name, work) for name in taken}
    for name, times in taken.items():
        padding = 1 - real / first[name][1]
        result[name] = {
            "cpu_seconds": times.cpu,
            "wall_seconds": times.wall,
            "padding": padding,
            "peak_memory": memory[name],
        }
        print(
            f"{name:>6}  {real / statistics.median(times.cpu):8,.0f} real tokens per CPU second  "
            f"CPU {common.spread(times.cpu)} s  wall {common.spread(times.wall)} s  "
            f"padding {padding:.0%}  memory {memory[name] / 2**20:,.0f} MiB"
        )
    ratios = common.ratios(taken["stock"], taken["ours"])
    result["speed_ratio"], result["memory_ratio"] = statistics.median(ratios), memory["ours"] / memory["stock"]
    print(
        f" ratio  {common.spread(ratios, 1)} times the tokens per CPU second, {result['memory_ratio']:.2f} of the memory"
    )
    common.append(options.out, result)


if __name__ == "__main__":
    main()
