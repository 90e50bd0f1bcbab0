"""Checks before the first step on pairs: whole steps, the first loss."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.processes import asked_for
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.finetune.training.pair_steps import ANSWERS, PARTS
from hybrid_ft.finetune.training.portions import sizes_of
from hybrid_ft.finetune.training.reference_cache import PIECE
from hybrid_ft.finetune.training.shared_prompts import divided


def check_whole_steps(recipe: Recipe, pairs: Dataset) -> None:
    """Raise InputError where a loss that sorts a step's pairs against each other would not see them all at once.
    Of a stream ``pairs`` are a sample, and the longest that are let in may come."""
    dpo, batch_tokens = recipe.dpo, recipe.train.batch_tokens
    if dpo is None or not LOSSES[dpo.loss].sorts:
        return
    largest = sum(sorted(sizes_of(pairs, PARTS), reverse=True)[: dpo.pairs_per_step])
    known = "the largest have"
    if recipe.data.streaming:
        known = "those of a stream may, by data.max_length, have"
        largest = dpo.pairs_per_step * 2 * recipe.data.max_length
    if largest > batch_tokens or asked_for() > recipe.train.sequence_parallel:
        raise InputError(
            f"dpo.loss: {dpo.loss} sorts the {dpo.pairs_per_step} pairs of a step against each other, so they must fit "
            f"one micro-batch of one process; {known} {largest:,} tokens, train.batch_tokens is "
            f"{batch_tokens:,}. Raise it, or lower dpo.pairs_per_step"
        )


def check_first_loss(trainer: PairTrainer, reference: Path | None) -> float | None:
    """The loss of equal models, ln 2 for sigmoid and sigmoid_norm; None for a loss that compares with no reference.
    ``reference``: the folder that has its log-probabilities, None where they come with the pairs.

    Raises InputError where the model and its reference differ before the first step: the loss of the first pairs must
    be that to 1e-3.
    """
    when_equal = LOSSES[trainer.loss_types[0]].when_equal
    if when_equal is None:
        return None
    expected = when_equal(trainer.beta, trainer.label_smoothing)
    # the pairs that were computed together when the reference was made: what is the same on both sides rounds the same
    rows = trainer.train_dataset.select(range(min(PIECE, len(trainer.train_dataset))))
    first = divided(list(rows), ANSWERS, trainer.batch_tokens)[0]
    batch = trainer._prepare_inputs(own_answers(trainer.padded(list(rows.select(first))), trainer.team))
    with trainer.measuring():
        loss = float(trainer.compute_loss(trainer.model, batch))
    trainer.forget_measures()
    if not abs(loss - expected) <= 1e-3:
        anew = f". The log-probabilities in {reference} are not this base's; delete that folder to compute them anew"
        raise InputError(
            f"the loss before the first step is {loss:.4f} and must be {expected:.4f}: the model is not its own reference"
            f"{anew if reference else ''}"
        )
    return expected
