"""What every stage of training does in the same way: its start and stop, the model, TRL's arguments, the loop, the results."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, set_seed

import hybrid_ft
from hybrid_ft.finetune import checkpoints, weights
from hybrid_ft.finetune.export import Exporter
from hybrid_ft.finetune.progress import ShowProgress, say
from hybrid_ft.finetune.recipe import Recipe
from hybrid_ft.finetune.run_folder import RunFolder
from hybrid_ft.finetune.stopping import RESUMABLE, Stopped, StopRequest
from hybrid_ft.hybrid_model import adapters, checkpoint
from hybrid_ft.hybrid_model.errors import InputError
from hybrid_ft.hybrid_model.presets import TINY

ENVIRONMENT = 3
"""Exit status where the machine is not what the run needs."""


def in_folder(folder: RunFolder, console: Console, work: Callable[[StopRequest], int]) -> int:
    """Do ``work`` while the folder is held and signals are heard. Returns its status, or 75 where a signal stopped it."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("several processes cannot train one model yet; start one process", ENVIRONMENT)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    stop = StopRequest()
    try:
        with stop.listening(), folder.held():
            return work(stop)
    except Stopped:
        name = stop.received.name if stop.received else "signal"
        say(console, f"stopped by {name}; the same command goes on from here")
        return RESUMABLE


def load_tokenizer(recipe: Recipe) -> PreTrainedTokenizerBase:
    wanted = recipe.model
    return checkpoint.load_tokenizer(wanted.tokenizer or wanted.path, None if wanted.tokenizer else wanted.revision)


def in_bfloat16(recipe: Recipe) -> bool:
    """Whether the arithmetic is bfloat16."""
    dtype = recipe.model.dtype
    return dtype == "bfloat16" or (dtype == "auto" and torch.cuda.is_available())


def load_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel | PeftModel:
    """The base, and the adapters on it. Full weights are float32 even where the arithmetic is bfloat16.

    bfloat16 keeps 8 bits: an update of 2.5e-5 to a weight of 0.02 is lost in rounding, so that a model trained in
    place in bfloat16 hardly moves. Frozen weights, under LoRA, lose nothing.
    """
    wanted, lora = recipe.model, recipe.model.lora
    model = hybrid_ft.load(
        wanted.path,
        dtype=torch.bfloat16 if in_bfloat16(recipe) and lora else torch.float32,
        from_scratch=wanted.from_scratch,
        vocab_size=math.ceil(len(tokenizer) / 64) * 64 if wanted.from_scratch else None,
        seed=recipe.train.seed,
        revision=wanted.revision,
    )
    checkpoint.check_vocabulary(model, tokenizer)
    set_seed(recipe.train.seed)
    return adapters.add_lora(model, lora.targets, lora.rank, lora.alpha, lora.dropout) if lora else model


def describe_model(recipe: Recipe, model: torch.nn.Module) -> str:
    whole = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lora = recipe.model.lora
    how = (
        f"LoRA on {lora.targets}, rank {lora.rank}: {trained:,} trained ({trained / whole:.2%})"
        if lora
        else "all trained"
    )
    return f"{recipe.model.path}: {whole:,} parameters, {how}"


def arguments(recipe: Recipe, steps: int, warmup: int, folder: RunFolder) -> dict[str, Any]:
    """TRL's arguments that a recipe decides for any stage.

    Everything that TRL or transformers would decide by itself and that changes a number, a file or the network is set
    here: mixed precision, checkpointing, sampling, reports, uploads.
    """
    train, every = recipe.train, recipe.evaluate.every
    gpu = torch.cuda.is_available()
    checkpointing = recipe.model.gradient_checkpointing
    return {
        "output_dir": str(folder.checkpoints),
        "max_steps": steps,
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.schedule if train.schedule != "constant" else "constant_with_warmup",
        "warmup_steps": warmup,
        "optim": "adamw_torch",
        "adam_beta1": train.betas[0],
        "adam_beta2": train.betas[1],
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": train.seed,
        "data_seed": train.seed,
        "use_cpu": not gpu,
        "bf16": in_bfloat16(recipe),
        "fp16": False,
        "gradient_checkpointing": gpu if checkpointing is None else checkpointing,
        "logging_strategy": "steps",
        "logging_steps": train.log_every,
        "logging_nan_inf_filter": False,
        "report_to": list(train.trackers) or "none",
        "run_name": folder.path.name,
        "project": "hybrid-ft",
        "disable_tqdm": True,
        "log_level": "error",
        "save_strategy": "steps",
        "save_steps": train.save_every,
        "eval_strategy": "steps" if every else "no",
        "eval_steps": every,
        "max_length": None,
        "remove_unused_columns": False,
        "dataloader_drop_last": False,
        "dataloader_pin_memory": gpu,
        "push_to_hub": False,
    }


def train(
    trainer: Trainer,
    recipe: Recipe,
    steps: int,
    folder: RunFolder,
    stop: StopRequest,
    progress: ShowProgress,
    resumed: Path | None,
) -> None:
    """The loop, from the beginning or from a checkpoint, to ``steps``."""
    step = checkpoints.step_of(resumed) if resumed else 0
    folder.forget_metrics_after(step)
    if resumed and step >= steps:
        # transformers would take one more step
        weights.load_into(trainer.model, resumed)
        return
    # whatever was measured before must not move the training: a resumed run does not measure again
    set_seed(recipe.train.seed)
    try:
        with stop.at_step_ends():
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    finally:
        progress.close()


def export(
    trainer: Trainer, recipe: Recipe, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, end_ids: list[int]
) -> list[Path]:
    """Every result, verified; the last is the one to talk to."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    wanted = recipe.model
    base = str(checkpoint.BUNDLED) if wanted.path == TINY else wanted.path
    exporter = Exporter(folder.path, tokenizer, end_ids, base, wanted.revision)
    if not wanted.lora:
        return [exporter.whole(model.to(torch.bfloat16) if in_bfloat16(recipe) else model)]
    results = [exporter.adapter(model)]
    if wanted.lora.merge:
        results.append(exporter.whole(model.merge_and_unload(), "merged"))
    return results
