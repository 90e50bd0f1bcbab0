"""One DPO step on real pairs on a CPU: this project against TRL's trainer on transformers' layers, and against itself
without shared prompts.

    python benchmarks/dpo_step_cpu.py --pairs lf_dpo_en_demo.json --tokenizer OLMO_TOKENIZER_FOLDER

All start from the same weights, have the same reference log-probabilities at hand, and take the same pairs in one
optimizer step: forward, backward, clipping, AdamW, the assembly of the batch included. Here micro-batches are filled by
tokens; TRL pads them, 8 pairs each, its default. Times are CPU seconds on one thread, taken in turns; memory is the
peak over weights, gradients and optimizer state, each in a process of its own. Nothing is printed if the first
gradients or the second losses disagree.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset
from rich.console import Console
from transformers import OlmoHybridForCausalLM, Trainer
from trl import DPOConfig, DPOTrainer

import hybrid_ft
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.training.dpo.batches import Pair, count_work
from hybrid_ft.finetune.training.dpo.metrics import ShowPairs
from hybrid_ft.finetune.training.dpo.reference_cache import ReferenceCache, digests_of, with_reference
from hybrid_ft.finetune.training.dpo.stage import Plan, arguments
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer

CONTENDERS = ("ours", "unshared", "stock")


class StockTrainer(DPOTrainer):
    """TRL's own, on pairs that come in tokens with their reference."""

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset


@dataclass(frozen=True)
class Unshared:
    """Our batches as if no two rows had a token in common: every row runs its prompt, and counts it."""

    collate: Callable[[list[Pair]], dict[str, Any]]

    def __call__(self, pairs: list[Pair]) -> dict[str, Any]:
        step = self.collate(pairs)
        for batch in step["micro_batches"]:
            del batch["prompt_lengths"], batch["prompt_rows"]
        return step


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
        dpo, folder = self.recipe.dpo, RunFolder(self.folder / "run")
        assert dpo is not None
        return PairTrainer(
            hybrid_ft.load(self.base),
            args=arguments(self.recipe, dpo, Plan.of(self.recipe, len(self.pairs)), folder),
            train_dataset=self.pairs,
            processing_class=self.tokenizer,
            callbacks=[ShowPairs(Console(file=io.StringIO()), self.folder / "metrics.jsonl")],
            pairs_per_step=len(self.pairs),
            batch_tokens=self.recipe.train.batch_tokens,
            folder=folder,
            keep=1,
            stop=StopRequest(),
            origins=str,
        )

    def unshared(self) -> Trainer:
        trainer = self.ours()
        trainer.data_collator = Unshared(replace(trainer.data_collator, budget=self.recipe.train.batch_tokens))
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
    recipe = Recipe.model_validate(
        {
            "model": {
                "path": options.model,
                "from_scratch": True,
                "tokenizer": options.tokenizer,
                "chat_template": options.chat_template,
            },
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
    base = folder / "base"
    if not base.exists():
        words = -(-len(tokenizer) // 64) * 64
        hybrid_ft.load(options.model, from_scratch=True, vocab_size=words).save_pretrained(base)
    prepared = prepare(recipe, tokenizer)
    pairs = Dataset.from_list(list(prepared.train))
    task = Task(recipe, pairs, tokenizer, base, folder, options.micro_batch)
    # what the pairs are compared with costs none of them anything
    trainer, digests = task.ours(), digests_of(pairs)
    cache = ReferenceCache(folder / "reference", {})
    values = cache.fill(pairs, digests, options.batch_tokens, trainer.reference, print)
    task.pairs = with_reference(pairs, digests, values)
    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", required=True, help="a file of preference pairs")
    parser.add_argument("--tokenizer", required=True, help="a tokenizer folder or hub name")
    parser.add_argument("--columns", help="column mapping of the pairs")
    parser.add_argument("--chat-template", default="olmo-instruct", help="a name, a .jinja file")
    parser.add_argument("--model", default="tiny", help="shape: tiny, 190M, 1B, or a folder with a config.json")
    parser.add_argument("--batch", type=int, default=32, help="pairs of the step")
    parser.add_argument(
        "--batch-tokens", type=int, default=3072, help="of our micro-batches; about what 8 pairs of TRL's have"
    )
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs of TRL's micro-batches")
    parser.add_argument("--max-length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="append the result as a JSON line")
    parser.add_argument("--memory-of", choices=CONTENDERS, help=argparse.SUPPRESS)
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
    trainers = {name: ready(getattr(task, name)()) for name in CONTENDERS}
    first = {name: one_step(trainer) for name, trainer in trainers.items()}
    second = {name: one_step(trainer) for name, trainer in trainers.items()}
    check(first, second)
    cpu: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(options.repeats):
        for name, trainer in trainers.items():
            began = time.process_time()
            one_step(trainer)
            cpu[name].append(time.process_time() - began)
    memory = {name: memory_of(name, work) for name in CONTENDERS}
    rows = list(task.pairs)
    shared, separate = count_work(trainers["ours"].model.config, frozen_weights=False)(rows)
    prompts = sum(len(row["prompt_ids"]) for row in rows)
    answers = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    report(options, cpu, memory, shared / separate, (len(rows), prompts, answers), second["ours"][0])


def check(first: dict[str, tuple[float, float]], second: dict[str, tuple[float, float]]) -> None:
    for name in CONTENDERS[1:]:
        if abs(first[name][1] / first["ours"][1] - 1) > 1e-3 or abs(second[name][0] / second["ours"][0] - 1) > 1e-4:
            sys.exit(f"the first gradients' norms or the second losses disagree: {first}, {second}")


def memory_of(name: str, work: Path) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", name, "--work", str(work)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def report(
    options: argparse.Namespace,
    cpu: dict[str, list[float]],
    memory: dict[str, int],
    work: float,
    counted: tuple[int, int, int],
    loss: float,
) -> None:
    pairs, prompts, answers = counted
    seconds = {name: statistics.median(times) for name, times in cpu.items()}
    print(
        f"{Path(options.pairs).name}: {pairs} pairs, {prompts:,} prompt tokens (once a pair), {answers:,} of answers; "
        f"prompts are {2 * prompts / (2 * prompts + answers):.0%} of the rows' tokens; second loss {loss:.4f}"
    )
    for name in CONTENDERS:
        spread = f"{min(cpu[name]):.2f} to {max(cpu[name]):.2f}"
        print(
            f"{name:<9} {pairs / seconds[name]:6.2f} pairs per CPU second  ({seconds[name]:.2f} s, {spread})  "
            f"peak {memory[name] / 2**20:,.0f} MB"
        )
    for name in CONTENDERS[1:]:
        ratios = sorted(theirs / ours for theirs, ours in zip(cpu[name], cpu["ours"], strict=True))
        print(
            f"against {name:<9} {statistics.median(ratios):.2f}x pairs per second ({ratios[0]:.2f} to {ratios[-1]:.2f}), "
            f"{memory['ours'] / memory[name]:.2f} of the memory"
        )
    print(
        f"computing each prompt once leaves {work:.0%} of the operations, a limit of {1 / work:.2f}x against unshared"
    )
    if options.out:
        result = {
            "pairs_file": Path(options.pairs).name,
            "model": options.model,
            "pairs": pairs,
            "prompt_tokens": prompts,
            "answer_tokens": answers,
            "cpu_seconds": cpu,
            "peak_bytes": memory,
            "operations_left": work,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
