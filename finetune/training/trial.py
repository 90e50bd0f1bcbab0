"""The fullest micro-batch there can be, tried before a run begins."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset
from transformers import Trainer

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.finetune.training.portions import sizes_of
from hybrid_ft.finetune.training.step_trainer import StepTrainer


def try_longest(trainer: StepTrainer, rows: Dataset, what: str, blank: dict[str, Any]) -> None:
    """Forward and backward of the fullest micro-batch there can be, the longest row in it, with room for the optimizer.

    ``what`` a row is called; ``blank``: the columns that are not known yet, each with a row's value.
    Raises InputError where it does not fit in memory. Nothing is trained, and no random number is drawn.
    """
    sizes = sizes_of(rows, trainer.parts)
    order = sorted(range(len(rows)), key=lambda row: -sizes[row])
    members, room = [], max(trainer.batch_tokens, sizes[order[0]])
    for row in order:
        if sizes[row] <= room:
            members.append(row)
            room -= sizes[row]
    batch = own_answers(trainer.padded([row | blank for row in rows.select(members)]), trainer.team)
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    try:
        moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
        Trainer.training_step(trainer, trainer.model, batch)
        del moments
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # a CPU's allocator has no class of its own for this
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        name = rows[order[0]].get("origin", "the longest")
        raise InputError(
            f"train.batch_tokens: a micro-batch of {sum(sizes[row] for row in members):,} tokens does not fit in memory; "
            f"the longest {what} alone has {sizes[order[0]]:,} ({name}). Lower train.batch_tokens or data.max_length, or "
            "set model.gradient_checkpointing: true",
            ENVIRONMENT,
        ) from error
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.forget_measures()
