"""What every stage of training does in the same way: its start and stop, the model, TRL's arguments, the loop, the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hybrid_ft.errors import RESUMABLE, STORAGE, InputError
from hybrid_ft.finetune.models import in_bfloat16
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import checkpoints, device, storage
from hybrid_ft.finetune.runs.export import Exporter
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.processes import Processes, asked_for, leave, other_is_gone
from hybrid_ft.finetune.runs.signals import Stopped, StopRequest
from hybrid_ft.finetune.training import fsdp as sharding
from hybrid_ft.finetune.training.progress import ShowProgress, say
from hybrid_ft.finetune.training.trainer import RunTrainer
from hybrid_ft.hybrid_model.checkpoint.generation_config import GenerationDefaults


def in_folder(folder: RunFolder, console: Console, work: Callable[[StopRequest], int]) -> int:
    """Do ``work`` while the folder is held and signals are heard. Returns its status, or 75 where a signal stopped it.

    Of several processes number 0 alone speaks. Raises InputError with status 5 where the disk fails.
    """
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    stop = StopRequest(several=asked_for() > 1)
    try:
        with stop.listening():
            processes = Processes.join()
            console.quiet = not processes.main
            with folder.held(processes):
                return work(stop)
    except Stopped:
        name = stop.received.name if stop.received else "a signal to another process"
        say(console, f"stopped by {name}; the same command goes on from here")
    except Exception as error:
        if storage.no_room(error):
            place = getattr(error, "filename", None)
            raise storage.refusal(error, Path(place) if place else folder.path / "a file", None) from error
        if not (stop.several and other_is_gone(error)):
            raise
        console.quiet = False
        say(console, "another process of this run has ended, and so does this one; the same command goes on from here")
    if stop.several:
        leave(RESUMABLE)
    return RESUMABLE


def begin_or_go_on(
    folder: RunFolder,
    recipe: Recipe,
    stage: str,
    identity: dict[str, Any],
    changed: list[str],
    tell: Callable[[str], None],
) -> None:
    """Write the first files of a run, or what its user has accepted since, and say what else is new."""
    if not folder.begun:
        folder.begin(stage, recipe, identity)
        return
    folder.complete(recipe)
    if changed:
        tell(f"changed   {', '.join(changed)}: accepted, so the run does not end where it would have")
        folder.accept(changed, recipe, identity)
    if folder.record["device"] != device.name():
        tell(
            f"device    {device.name()}, was {folder.record['device']}: the run may not end bit for bit where it would have"
        )


def newest_checkpoint(folder: RunFolder, tell: Callable[[str], None]) -> Path | None:
    """As process 0 finds it: it sets damaged ones aside."""
    found = checkpoints.newest(folder.checkpoints, tell) if folder.begun and folder.processes.main else None
    return folder.processes.of_main(found)


def check_storage(folder: RunFolder, recipe: Recipe, model: PreTrainedModel | PeftModel) -> str:
    """What a save costs here, as it is shown. Raises InputError where the disk fails, or has not the room that the run
    will need."""
    if not folder.processes.main:
        return ""
    each = storage.checkpoint_bytes(model)
    keep = recipe.train.keep + recipe.evaluate.load_best
    storage.check_room(folder.path, each, keep, _result_bytes(recipe, model), _present(folder))
    return storage.describe(each, storage.probe(folder.path), recipe.train.save_every, keep)


def _result_bytes(recipe: Recipe, model: PreTrainedModel | PeftModel) -> int:
    """Of what is exported: all weights, or the adapter and on request all weights."""
    size = 2 if in_bfloat16(recipe) else 4
    lora = recipe.model.lora
    exported = sum(p.numel() for p in model.parameters() if not lora or p.requires_grad or lora.merge)
    return size * exported


def _present(folder: RunFolder) -> int:
    """Bytes of the checkpoints that are there."""
    return sum(file.stat().st_size for file in folder.checkpoints.rglob("*") if file.is_file())


def describe_processes(recipe: Recipe, processes: Processes) -> str:
    how = "in pieces over them (FSDP2)" if recipe.train.sharded else "a copy in each (DDP)"
    return f"processes {processes.count}, the model {how}"


def arguments(recipe: Recipe, steps: int, warmup: int, folder: RunFolder) -> dict[str, Any]:
    """TRL's arguments that a recipe decides for any stage.

    Everything that TRL or transformers would decide by itself and that changes a number, a file or the network is set
    here: mixed precision, checkpointing, sampling, reports, uploads.
    """
    train, every = recipe.train, recipe.evaluate.every
    gpu = device.is_gpu()
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
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,
        "dataloader_num_workers": train.loader_workers,
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
    trainer: RunTrainer,
    recipe: Recipe,
    steps: int,
    stop: StopRequest,
    progress: ShowProgress,
    resumed: Path | None,
    plain_model: Callable[[], PreTrainedModel | PeftModel],
) -> bool:
    """The loop, from the beginning or from a checkpoint, to ``steps``; then the best weights where they are the result.

    Of several processes all but number 0 are done after it: returns whether this one goes on. ``plain_model`` loads the
    model once more, for one process alone, where the trainer's lies in pieces.
    """
    folder, processes = trainer.folder, trainer.processes
    step = checkpoints.step_of(resumed) if resumed else 0
    folder.forget_metrics_after(step)
    # process 0 may have measured the base, however long that took
    processes.wait()
    if resumed and step >= steps:
        # transformers would take one more step
        last = resumed
        processes.part()
        if processes.main:
            trainer.load_weights(last)
    else:
        if resumed:
            trainer.load_weights(resumed)
        # whatever was measured before must not move the training: a resumed run does not measure again
        set_seed(recipe.train.seed)
        sharded = recipe.train.sharded and processes.count > 1
        if sharded:
            sharding.shard(trainer.model, trainer.accelerator)
        try:
            with trainer.watchdog.watching(folder.path, processes.rank), stop.at_step_ends():
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
        finally:
            progress.close()
        last = folder.checkpoints / f"checkpoint-{trainer.state.global_step}"
        processes.part()
        if processes.main and sharded:
            trainer.replace_model(plain_model)
            trainer.load_weights(last)
    if not processes.main:
        return False
    best = trainer.best_checkpoint(last)
    trainer.result_step = checkpoints.step_of(best or last)
    if best is not None and best != last:
        if wrong := checkpoints.fault(best):
            raise InputError(
                f"{best}: {wrong}; it had the lowest held-out loss. Restore it, or take the last weights: start again with "
                "evaluate.load_best=false --accept-changes",
                STORAGE,
            )
        say(progress.console, f"result    the weights of {best.name}, whose held-out loss was the lowest")
        trainer.load_weights(best)
    return True


def export(
    trainer: RunTrainer,
    recipe: Recipe,
    folder: RunFolder,
    tokenizer: PreTrainedTokenizerBase,
    defaults: GenerationDefaults,
) -> list[Path]:
    """Every result, verified; the last is the one to talk to."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    # a copy of a model whose forward was replaced on the instance would run the original's
    (model.get_base_model() if isinstance(model, PeftModel) else model).__dict__.pop("forward", None)
    wanted = recipe.model
    exporter = Exporter(folder.path, tokenizer, defaults, wanted.path, wanted.revision)
    if not wanted.lora:
        return [exporter.whole(model.to(torch.bfloat16) if in_bfloat16(recipe) else model)]
    results = [exporter.adapter(model)]
    if wanted.lora.merge:
        results.append(exporter.whole(model.merge_and_unload(), "merged"))
    return results
