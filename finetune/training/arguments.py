"""The arguments of TRL's trainers that a recipe decides for any stage."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from hybrid_ft.finetune.models import in_bfloat16
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.hybrid_model.selective_checkpointing import selective_contexts

Config = TypeVar("Config")


def arguments(make: Callable[..., Config], recipe: Recipe, plan: Plan, folder: RunFolder, **of_stage: Any) -> Config:
    """``make`` is TRL's class of arguments, ``of_stage`` those that one stage alone has.

    Everything that TRL or transformers would decide by itself and that changes a number, a file or the network is set
    here: mixed precision, checkpointing, sampling, reports, uploads.
    """
    train, every = recipe.train, recipe.evaluate.every
    gpu = device.is_gpu()
    checkpointing = recipe.model.gradient_checkpointing
    selectively = {"use_reentrant": False, "context_fn": selective_contexts}
    with warnings.catch_warnings():
        # the name that transformers 5.20 knows; 5.23 has a new one for it
        warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
        return make(
            output_dir=str(folder.checkpoints),
            max_steps=plan.steps,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.schedule if train.schedule != "constant" else "constant_with_warmup",
            warmup_steps=plan.warmup,
            # torch's default on a GPU, foreach, makes temporary copies of all weights in a step: 29.7 GB of a 7B
            optim="adamw_torch_fused" if gpu else "adamw_torch",
            adam_beta1=train.betas[0],
            adam_beta2=train.betas[1],
            neftune_noise_alpha=train.neftune_alpha,
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            seed=train.seed,
            data_seed=train.seed,
            use_cpu=not gpu,
            bf16=in_bfloat16(recipe),
            fp16=False,
            ddp_find_unused_parameters=False,
            ddp_broadcast_buffers=False,
            dataloader_num_workers=train.loader_workers,
            gradient_checkpointing=gpu if checkpointing is None else bool(checkpointing),
            gradient_checkpointing_kwargs=selectively if checkpointing == "selective" else None,
            logging_strategy="steps",
            logging_steps=train.log_every,
            logging_nan_inf_filter=False,
            report_to=list(train.trackers) or "none",
            run_name=folder.path.name,
            project="hybrid-ft",
            disable_tqdm=True,
            log_level="error",
            save_strategy="steps",
            save_steps=train.save_every,
            eval_strategy="steps" if every else "no",
            eval_steps=every,
            max_length=None,
            remove_unused_columns=False,
            dataloader_drop_last=False,
            dataloader_pin_memory=gpu,
            push_to_hub=False,
            **of_stage,
        )
