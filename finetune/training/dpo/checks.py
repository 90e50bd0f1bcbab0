"""Checks before the first step: the largest micro-batch, the first loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import DPOTrainer

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.recipe.schema import Dpo
from hybrid_ft.finetune.runs.processes import asked_for
from hybrid_ft.finetune.training.dpo.batches import padded_pairs, sizes_of
from hybrid_ft.finetune.training.dpo.reference_cache import PIECE
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer


def check_whole_steps(dpo: Dpo, pairs: Dataset, batch_tokens: int) -> None:
    """Raise InputError where a loss that sorts a step's pairs against each other would not see them all at once."""
    if not LOSSES[dpo.loss].sorts:
        return
    largest = sum(sorted(sizes_of(pairs), reverse=True)[: dpo.pairs_per_step])
    if largest > batch_tokens or asked_for() > 1:
        raise InputError(
            f"dpo.loss: {dpo.loss} sorts the {dpo.pairs_per_step} pairs of a step against each other, so they must fit "
            f"one micro-batch of one process; the largest have {largest:,} tokens, train.batch_tokens is "
            f"{batch_tokens:,}. Raise it, or lower dpo.pairs_per_step"
        )


def try_longest(trainer: PairTrainer, pairs: Dataset) -> None:
    """Forward and backward of the fullest micro-batch there can be, the longest pair in it, with room for the optimizer.

    Raises InputError where it does not fit in memory. Nothing is trained, and no random number is drawn.
    """
    sizes = sizes_of(pairs)
    order = sorted(range(len(pairs)), key=lambda row: -sizes[row])
    members, room = [], max(trainer.batch_tokens, sizes[order[0]])
    for row in order:
        if sizes[row] <= room:
            members.append(row)
            room -= sizes[row]
    batch: dict[str, Any] = padded_pairs(list(pairs.select(members)), trainer.pad_token_id)
    batch |= {f"ref_{side}_logps": torch.zeros(len(members)) for side in ("chosen", "rejected")}
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    try:
        moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
        DPOTrainer.training_step(trainer, trainer.model, batch)
        del moments
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # a CPU's allocator has no class of its own for this
        if type(error) is RuntimeError and "allocate memory" not in str(error):
            raise
        name = pairs[order[0]].get("origin", "the longest")
        raise InputError(
            f"train.batch_tokens: a micro-batch of {sum(sizes[row] for row in members):,} tokens does not fit in memory; "
            f"the longest pair alone has {sizes[order[0]]:,} ({name}). Lower train.batch_tokens or data.max_length, or "
            "set model.gradient_checkpointing: true",
            ENVIRONMENT,
        ) from error
    finally:
        trainer.model.zero_grad(set_to_none=True)
        trainer.forget_measures()


def check_first_loss(trainer: PairTrainer, reference: Path) -> float | None:
    """The loss of equal models, ln 2 for sigmoid and sigmoid_norm; None for a loss that compares with no reference.

    Raises InputError where the model and its reference differ before the first step: the loss of the first pairs must
    be that to 1e-3.
    """
    when_equal = LOSSES[trainer.loss_types[0]].when_equal
    if when_equal is None:
        return None
    expected = when_equal(trainer.beta, trainer.label_smoothing)
    # the pairs that were computed together when the reference was made: what is the same on both sides rounds the same
    rows = trainer.train_dataset.select(range(min(PIECE, len(trainer.train_dataset))))
    first = pack(sizes_of(rows), trainer.batch_tokens)[0]
    batch = trainer._prepare_inputs(padded_pairs(list(rows.select(first)), trainer.pad_token_id))
    with trainer.measuring():
        loss = float(DPOTrainer.compute_loss(trainer, trainer.model, batch))
    trainer.forget_measures()
    if not abs(loss - expected) <= 1e-3:
        raise InputError(
            f"the loss before the first step is {loss:.4f} and must be {expected:.4f}: the model is not its own reference. "
            f"The log-probabilities in {reference} are not this base's; delete that folder to compute them anew"
        )
    return expected
