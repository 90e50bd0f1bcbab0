"""Saving on a CPU: seconds per GB by part, share of a run.

    python benchmarks/cpu/checkpoint.py --work FOLDER_ON_THE_DISK_IN_QUESTION

Parts: made-up tensors in files as large as an optimizer's are written, hashed and synced as a checkpoint's are, one
after the other, several times. Share: the recipe quickstart/sft trains the small base that ships, and its steps and
the saves between them are timed in the same run.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import common
import torch
from rich.console import Console
from safetensors.torch import save_file
from transformers import TrainerCallback

from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import atomic, checkpoints
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.signals import StopRequest
from hybrid_ft.finetune.runs.storage import probe
from hybrid_ft.finetune.runs.training_state import PIECE
from hybrid_ft.finetune.training.packs import packs_dataset
from hybrid_ft.finetune.training.sft.stage import plan_of, sft_arguments, show_progress
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

PARTS = ("write", "digest", "sync", "rename")


class Times(TrainerCallback):
    """Seconds of each step, of each save after one, and from a step's beginning to the next one's without and with a
    save."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.saves: list[float] = []
        self.without_save: list[float] = []
        self.with_save: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        if self.steps:
            (self.with_save if self.has_saved else self.without_save).append(now - self.began)
        self.began, self.has_saved = now, False

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ended = time.perf_counter()
        self.steps.append(self.ended - self.began)

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self.saves.append(time.perf_counter() - self.ended)
        self.has_saved = True


def time_parts(folder: Path, size: int) -> dict[str, float]:
    """Seconds of each part of a checkpoint of ``size`` bytes."""
    staged, seconds = folder / "staged", {}
    staged.mkdir()
    each = min(PIECE, size)
    tensor = torch.randn(each // 4)
    began = time.perf_counter()
    for number in range(size // each):
        save_file({"moment": tensor}, staged / f"optimizer-{number:05}.safetensors")
    seconds["write"] = time.perf_counter() - began
    files = sorted(staged.iterdir())
    began = time.perf_counter()
    atomic.sha256(files)
    seconds["digest"] = time.perf_counter() - began
    began = time.perf_counter()
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    seconds["sync"] = time.perf_counter() - began
    began = time.perf_counter()
    atomic.publish(staged, folder / "checkpoint")
    seconds["rename"] = time.perf_counter() - began
    shutil.rmtree(folder / "checkpoint")
    return seconds


def time_run(work: Path, steps: int, every: int) -> tuple[Times, int]:
    """Of ``steps`` steps with a save after every few, and the bytes of one checkpoint."""
    recipe = load_recipe(
        "quickstart/sft", [f"train.steps={steps}", f"train.save_every={every}", f"output={work / 'run'}"]
    )
    tokenizer = models.load_tokenizer(recipe)
    prepared = prepare(recipe, tokenizer)
    assert prepared.packs is not None
    folder, times = RunFolder(work / "run"), Times()
    folder.checkpoints.mkdir(parents=True)
    trainer = PackedSFTTrainer(
        models.load_model(recipe, tokenizer),
        sft_arguments(recipe, plan_of(recipe, prepared), folder),
        train_dataset=packs_dataset(prepared.train, prepared.packs),
        processing_class=tokenizer,
        callbacks=[show_progress(Console(file=io.StringIO()), folder.metrics), times],
        folder=folder,
        keep=recipe.train.keep,
        stop=StopRequest(),
        origins=str,
    )
    trainer.train()
    newest = checkpoints.committed(folder.checkpoints)[-1]
    return times, sum(file.stat().st_size for file in newest.iterdir())


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--work", type=Path, help="an existing folder to write in; left empty again")
    parser.add_argument("--gigabytes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-every", type=int, default=3, help="more often than by default, to have enough saves")
    options = parser.parse_args()
    common.one_quiet_thread()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        measure(options, Path(work))


def measure(options: argparse.Namespace, work: Path) -> None:
    default = Recipe.model_fields["train"].annotation.model_fields["save_every"].default
    per_second = probe(work)
    runs = [time_parts(work, options.gigabytes * 10**9) for _ in range(options.repeats)]
    parts = {part: [run[part] / options.gigabytes for run in runs] for part in PARTS}
    print(f"probe {per_second / 1e9:.2f} GB/s, cores {os.cpu_count()}")
    for part, seconds in parts.items():
        print(f"{part:>7}  {common.spread(seconds, 3)} s per GB")
    times, size = time_run(work, options.steps, options.save_every)
    step, save = statistics.median(times.steps), statistics.median(times.saves)
    share = save / (default * step + save)
    print(f"   step  {common.spread(times.steps, 3)} s")
    print(f"   save  {common.spread(times.saves, 3)} s, {size / 1e6:.1f} MB")
    print(
        f"  whole  {common.spread(times.without_save, 3)} s a step without a save, {common.spread(times.with_save, 3)} s with one"
    )
    print(f"  share  {share:.3%} of wall time at a save every {default} steps")
    if options.out:
        result = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            **common.versions(),
            "cores": os.cpu_count(),
            "gigabytes": options.gigabytes,
            "probe_bytes_per_second": per_second,
            "seconds_per_gb": parts,
            "checkpoint_bytes": size,
            "step_seconds": times.steps,
            "save_seconds": times.saves,
            "whole_step_without_save_seconds": times.without_save,
            "whole_step_with_save_seconds": times.with_save,
            "save_every": default,
            "share_of_wall_time": share,
        }
        common.append(options.out, result)


if __name__ == "__main__":
    main()
