"""A reward model: from a recipe of pairs to a model that scores.

TRL's RewardTrainer trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig

from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.recipe.preference_section import Reward
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import digest
from hybrid_ft.finetune.training.arguments import arguments
from hybrid_ft.finetune.training.pair_stage import digest_of_files, plan_of_pairs, trainer_of_pairs
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.finetune.training.preference import portions_of, show_measures
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.reference_cache import digests_of
from hybrid_ft.finetune.training.reward.metrics import measures, show_progress
from hybrid_ft.finetune.training.reward.trainer import ScoreTrainer, StreamedScoreTrainer
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.finetune.training.trial import try_longest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Scored:
    """Prepared pairs with the number of each, ``row``."""

    train: Dataset
    eval: Dataset | None
    report: Any
    eos_token_ids: list[int]
    chat_template: str | None
    template_arguments: dict[str, Any]
    kept: Any
    """what was prepared, whose folder goes when it does"""


def prepare_pairs(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Scored:
    """Raises InputError for data that cannot be used."""
    made = prepare(recipe, tokenizer)
    held_out = None if made.eval is None else _numbered(made.eval)
    ends, template = made.eos_token_ids, made.chat_template
    return Scored(_numbered(made.train), held_out, made.report, ends, template, made.template_arguments, made)


def _numbered(rows: Dataset) -> Dataset:
    return rows.add_column("row", np.arange(len(rows)))


def _section(recipe: Recipe) -> Reward:
    assert recipe.reward is not None, "a recipe of a reward model has a reward section"
    return recipe.reward


def _identity(pairs: Scored) -> dict[str, str]:
    """The tokens and margins of every pair, in order."""
    parts = [
        b"".join(digests_of(rows)) + np.asarray(rows["margin"], dtype=np.float32).tobytes()
        for rows in (pairs.eval, pairs.train)
        if rows is not None
    ]
    return {"rows": digest(b"|".join(parts))} | digest_of_files(pairs)


def plan_of(recipe: Recipe, pairs: Any, processes: int = 1) -> Plan:
    """A step is its pairs, however many processes share them."""
    return plan_of_pairs(recipe, pairs, _section(recipe).pairs_per_step)


def _describe(start: Start) -> tuple[str, str]:
    reward = _section(start.recipe)
    portions = portions_of(start, reward.pairs_per_step, "pairs")
    centred = reward.center_rewards_coefficient
    return portions, "loss Bradley-Terry, " + (f"scores drawn to 0 by {centred:g}, " if centred else "")


def reward_arguments(recipe: Recipe, plan: Plan, folder: RunFolder) -> RewardConfig:
    """TRL's."""
    reward = _section(recipe)
    return arguments(
        RewardConfig,
        recipe,
        plan,
        folder,
        center_rewards_coefficient=reward.center_rewards_coefficient,
        per_device_train_batch_size=reward.pairs_per_step,
        gradient_accumulation_steps=1,
        # a stream goes on from its own state
        ignore_data_skip=recipe.data.streaming,
    )


def _trainer(start: Start, model: PreTrainedModel | PeftModel, progress: ShowProgress) -> ScoreTrainer:
    args, size = reward_arguments(start.recipe, start.plan, start.folder), _section(start.recipe).pairs_per_step
    trainer: ScoreTrainer = trainer_of_pairs(start, model, progress, args, size, ScoreTrainer, StreamedScoreTrainer)
    return trainer


REWARD = Stage(
    name="reward",
    prepare=prepare_pairs,
    identity=_identity,
    plan=plan_of,
    describe=_describe,
    progress=show_progress,
    trainer=_trainer,
    trial=lambda start, trainer: try_longest(trainer, start.prepared.train, "pair", {}),
    ready=lambda start, trainer, tried: None,
    questions=lambda pairs, tokenizer: None,
    show=partial(show_measures, measures=measures),
)
