"""A DPO step on a CPU: shared prompts, unshared, and stock TRL.

One DPO step on real pairs on a CPU: this project against TRL's trainer on transformers' layers, and against itself
without shared prompts.

    python benchmarks/cpu/dpo_step.py --pairs lf_dpo_en_demo.json --tokenizer OLMO_TOKENIZER_FOLDER

All start from the same weights, have the same reference log-probabilities at hand, and take the same pairs in one
optimizer step: forward, backward, clipping, AdamW, the assembly of the batch included. Here micro-batches are filled by
tokens; TRL pads them, 8 pairs each, its default. Times are CPU seconds on one thread, taken in turns; memory is the
peak over weights, gradients and optimizer state, each in a process of its own. Nothing is printed if the first
gradients or the second losses disagree.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import torch
from datasets import Dataset
from rich.console import Console
from transformers import OlmoHybridForCausalLM, Trainer
from trl import DPOConfig, DPOTrainer

import hybrid_ft
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training.dpo.batches import laid_out_pairs
from hybrid_ft.finetune.training.dpo.metrics import show_progress
from hybrid_ft.finetune.training.dpo.stage import dpo_arguments, plan_of
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
from hybrid_ft.finetune.training.reference_cache import ReferenceCache, digests_of, with_reference
from hybrid_ft.finetune.training.shared_prompts import count_work
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

CONTENDERS = ("ours", "unshared", "stock")


class StockTrainer(DPOTrainer):
    """TRL's own, on pairs that come in tokens with their reference."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


@dataclass
class Task:
    """The same for all: pairs with their reference, weights on disk, tokenizer."""

    recipe: Recipe
    pairs: Dataset
    tokenizer: Any
    base: Path
    folder: Path
    micro_batch: int

    def ours(self) -> Trainer:
        folder = RunFolder(self.folder / "run")
        return PairTrainer(
            hybrid_ft.load(self.base),
            args=dpo_arguments(self.recipe, plan_of(self.recipe, SimpleNamespace(train=self.pairs)), folder),
            train_dataset=self.pairs,
            processing_class=self.tokenizer,
            callbacks=[show_progress(Console(file=io.StringIO()), self.folder / "metrics.jsonl")],
            pairs_per_step=len(self.pairs),
            batch_tokens=self.recipe.train.batch_tokens,
            folder=folder,
            keep=1,
            stop=StopRequest(),
            origins=str,
        )

    def unshared(self) -> Trainer:
        trainer = self.ours()
        trainer.data_collator = replace(
            trainer.data_collator, pad=partial(laid_out_pairs, pad_token_id=trainer.pad_token_id, forks=False)
        )
        return trainer

    def stock(self) -> Trainer:
        dpo, train = self.recipe.dpo, self.recipe.train
        assert dpo is not None
        args = DPOConfig(
            output_dir=str(self.folder / "stock"),
            per_device_train_batch_size=self.micro_batch,
            loss_type=[dpo.loss],
            beta=dpo.beta,
            precompute_ref_log_probs=True,
            learning_rate=train.learning_rate,
            adam_beta1=train.betas[0],
            adam_beta2=train.betas[1],
            optim="adamw_torch",
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        )
        return StockTrainer(
            OlmoHybridForCausalLM.from_pretrained(self.base, dtype=torch.float32),
            args=args,
            train_dataset=self.pairs.select_columns([name for name in self.pairs.column_names if name != "row"]),
            processing_class=self.tokenizer,
        )


def one_step(trainer: Trainer) -> tuple[float, float]:
    """Train on every pair once; returns the loss and the gradient's norm."""
    batches = iter(trainer.get_train_dataloader())
    micro_batches, _ = trainer.get_batch_samples(batches, 1_000_000, torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    loss = sum(trainer.training_step(trainer.model, batch) for batch in micro_batches)
    norm = trainer._get_grad_norm(trainer.model, trainer._clip_grad_norm(trainer.model))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=False)
    return float(loss), float(norm)


def prepared_task(options: argparse.Namespace, folder: Path) -> Task:
    recipe = Recipe.model_validate(
        {
            "model": common.model_section(options),
            "data": {
                "sources": [{"path": options.pairs, "count": options.batch, "columns": options.columns}],
                "max_length": options.max_length,
                "max_dropped": 1.0,
            },
            "train": {"batch_tokens": options.batch_tokens, "learning_rate": 1e-4, "warmup": 0.0},
            "dpo": {},
        }
    )
    tokenizer = load_tokenizer(options.tokenizer)
    base = common.random_base(options, tokenizer, folder)
    prepared = prepare(recipe, tokenizer)
    pairs = Dataset.from_list(list(prepared.train))
    task = Task(recipe, pairs, tokenizer, base, folder, options.micro_batch)
    # what the pairs are compared with costs none of them anything
    trainer, digests = task.ours(), digests_of(pairs)
    cache = ReferenceCache(folder / "reference", {})
    values = cache.fill(pairs, digests, options.batch_tokens, trainer.reference, print)
    task.pairs = with_reference(pairs, digests, values)
    return task


def side(options: argparse.Namespace, work: Path, name: str) -> Callable[[], object]:
    return partial(one_step, common.ready(getattr(prepared_task(options, work), name)()))


def main() -> None:
    parser = common.parser(__doc__)
    common.add_step_options(parser, CONTENDERS, repeats=3)
    parser.add_argument("--pairs", required=True, help="a file of preference pairs")
    parser.add_argument("--columns", help="column mapping of the pairs")
    parser.add_argument("--batch", type=int, default=32, help="pairs of the step")
    parser.add_argument(
        "--batch-tokens", type=int, default=3072, help="of our micro-batches; about what 8 pairs of TRL's have"
    )
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs of TRL's micro-batches")
    parser.add_argument("--max-length", type=int, default=4096)
    common.run_step_benchmark(parser.parse_args(), side, measure)


def measure(options: argparse.Namespace, work: Path) -> None:
    task = prepared_task(options, work)
    trainers = {name: common.ready(getattr(task, name)()) for name in CONTENDERS}
    first = {name: one_step(trainer) for name, trainer in trainers.items()}
    second = {name: one_step(trainer) for name, trainer in trainers.items()}
    check(first, second)
    taken = common.in_turns({name: partial(one_step, trainer) for name, trainer in trainers.items()}, options.repeats)
    memory = {name: common.memory_of(name, work) for name in CONTENDERS}
    rows = list(task.pairs)
    shared, separate = count_work(trainers["ours"].model.config, frozen_weights=False)(rows)
    prompts = sum(len(row["prompt_ids"]) for row in rows)
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    report(options, taken, memory, shared / separate, (len(rows), prompts, answers), second["ours"][0])


def check(first: dict[str, tuple[float, float]], second: dict[str, tuple[float, float]]) -> None:
    for name in CONTENDERS[1:]:
        if abs(first[name][1] / first["ours"][1] - 1) > 1e-3 or abs(second[name][0] / second["ours"][0] - 1) > 1e-4:
            sys.exit(f"the first gradients' norms or the second losses disagree: {first}, {second}")


def report(
    options: argparse.Namespace,
    taken: dict[str, common.Taken],
    memory: dict[str, int],
    work: float,
    counted: tuple[int, int, int],
    loss: float,
) -> None:
    pairs, prompts, answers = counted
    print(
        f"{Path(options.pairs).name}: {pairs} pairs, {prompts:,} prompt tokens (once a pair), {answers:,} of answers; "
        f"prompts are {2 * prompts / (2 * prompts + answers):.0%} of the rows' tokens; second loss {loss:.4f}"
    )
    for name in CONTENDERS:
        print(
            f"{name:<9} {pairs / statistics.median(taken[name].cpu):6.2f} pairs per CPU second  "
            f"({common.spread(taken[name].cpu)} s)  peak {memory[name] / 2**20:,.0f} MB"
        )
    for name in CONTENDERS[1:]:
        ratios = common.ratios(taken[name], taken["ours"])
        print(
            f"against {name:<9} {common.spread(ratios)} times the pairs per second, "
            f"{memory['ours'] / memory[name]:.2f} of the memory"
        )
    print(
        f"computing each prompt once leaves {work:.0%} of the operations, a limit of {1 / work:.2f}x against unshared"
    )
    result = {
        "pairs_file": Path(options.pairs).name,
        "model": options.model,
        "pairs": pairs,
        "prompt_tokens": prompts,
        "answer_tokens": answers,
        "cpu_seconds": {name: times.cpu for name, times in taken.items()},
        "peak_bytes": memory,
        "operations_left": work,
        **common.versions(),
    }
    common.append(options.out, result)


if __name__ == "__main__":
    main()
