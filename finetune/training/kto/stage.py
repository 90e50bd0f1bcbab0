"""Preference tuning on judged answers (KTO): from a recipe to a saved model.

TRL's KTOTrainer trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import KTOConfig

from hybrid_ft.errors import InputError
from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.prompt_order import order_of
from hybrid_ft.finetune.recipe.preference_section import Kto
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import digest
from hybrid_ft.finetune.runs.weights import is_divided
from hybrid_ft.finetune.training.arguments import arguments
from hybrid_ft.finetune.training.kto.batches import ANSWER, bounds_of, forks_of
from hybrid_ft.finetune.training.kto.metrics import measures, show_progress
from hybrid_ft.finetune.training.kto.trainer import AnswerTrainer
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.finetune.training.preference import fill_reference, portions_of, show_measures
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.reference_cache import (
    ANSWERS,
    PIECE,
    ReferenceCache,
    Values,
    digest_of_tokens,
    reference_key,
)
from hybrid_ft.finetune.training.shared_prompts import divided
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.finetune.training.stuck_loss import StuckLoss
from hybrid_ft.finetune.training.trial import try_longest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

BLANK = {"ref_logps": 0.0, "ref_KL_logps": 0.0}
MOST_DRIFT = 4e-3
"""How far the mean reward may lie from 0 before the first step: the loss changes by a quarter of it."""


@dataclass(frozen=True)
class Split:
    """Judged answers in the order of their steps. ``forks``: the answers whose reference is needed; ``digests``
    stand for their tokens."""

    rows: Dataset
    forks: Dataset
    digests: list[bytes]

    @classmethod
    def of(cls, rows: Dataset, recipe: Recipe) -> Split:
        """In the order of the run's steps, so that answers to one prompt fall into one step and share it."""
        kto = _section(recipe)
        prompts = [digest_of_tokens([prompt]) for prompt in rows["prompt_ids"]]
        order = order_of(prompts, recipe.train.seed)
        rows, bounds = rows.select(order), bounds_of(len(rows), kto.rows_per_step)
        most = recipe.data.max_length if kto.has_kl else None
        forks = forks_of(rows, [prompts[row] for row in order], bounds, most)
        digests = [
            digest_of_tokens(tokens)
            for batch in forks.iter(1000)
            for tokens in zip(*(batch[name] for name in ANSWERS.tokens), strict=True)
        ]
        return cls(rows, forks, digests)

    def with_reference(self, values: Values) -> Dataset:
        """The rows with ``ref_logps``, where there is a KL term also ``ref_KL_logps`` (float32), and ``row``, their
        number."""
        found = np.asarray([values[digest][0] for digest in self.digests], dtype=np.float32)
        sides, rows = len(self.forks) // len(self.rows), self.rows
        for side, name in zip(range(sides), ("ref_logps", "ref_KL_logps"), strict=False):
            rows = rows.add_column(name, found[side::sides])
        return rows.add_column("row", np.arange(len(rows)))


@dataclass(frozen=True)
class Answers:
    """Prepared judged answers, by split."""

    splits: dict[str, Split]
    report: Any
    eos_token_ids: list[int]
    chat_template: str | None
    template_arguments: dict[str, Any]
    kept: Any
    """what was prepared, whose folder goes when it does"""

    @property
    def train(self) -> Dataset:
        return self.splits["train"].rows

    @property
    def eval(self) -> Dataset | None:
        return self.splits["eval"].rows if "eval" in self.splits else None


def prepare_answers(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Answers:
    """Raises InputError for data that cannot be used."""
    prepared = prepare(recipe, tokenizer)
    both = {"train": prepared.train} | ({} if prepared.eval is None else {"eval": prepared.eval})
    for key, rows in both.items():
        if _section(recipe).has_kl and len(rows) < 2:
            raise InputError(
                f"data.{'eval' if key == 'eval' else 'sources'}: one row cannot be mismatched with another, which kto "
                "measures its KL term on; give more rows, or set kto.loss: apo_zero_unpaired"
            )
    splits = {key: Split.of(rows, recipe) for key, rows in both.items()}
    template, arguments = prepared.chat_template, prepared.template_arguments
    return Answers(splits, prepared.report, prepared.eos_token_ids, template, arguments, prepared)


def _section(recipe: Recipe) -> Kto:
    assert recipe.kto is not None, "a recipe of judged answers has a kto section"
    return recipe.kto


def _identity(prepared: Answers) -> dict[str, str]:
    """The tokens and labels of every answer, in order."""
    parts = [
        b"".join(split.digests) + np.asarray(split.rows["label"], dtype=np.uint8).tobytes()
        for _, split in sorted(prepared.splits.items())
    ]
    return {"rows": digest(b"|".join(parts))}


def plan_of(recipe: Recipe, prepared: Any, processes: int = 1) -> Plan:
    """A step is its rows, however many processes share them."""
    return Plan.of(recipe, len(bounds_of(len(prepared.train), _section(recipe).rows_per_step)) - 1, 1)


def _describe(start: Start) -> tuple[str, str]:
    kto = _section(start.recipe)
    portions = portions_of(start, kto.rows_per_step, "rows")
    return portions, f"loss {kto.loss}, beta {kto.beta:g}, "


def kto_arguments(recipe: Recipe, plan: Plan, folder: RunFolder) -> KTOConfig:
    """TRL's."""
    kto = _section(recipe)
    return arguments(
        KTOConfig,
        recipe,
        plan,
        folder,
        loss_type=kto.loss,
        beta=kto.beta,
        desirable_weight=kto.desirable_weight,
        undesirable_weight=kto.undesirable_weight,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=kto.rows_per_step,
        gradient_accumulation_steps=1,
    )


def _trainer(start: Start, model: PreTrainedModel | PeftModel, progress: ShowProgress) -> AnswerTrainer:
    recipe = start.recipe
    return AnswerTrainer(
        model,
        args=kto_arguments(recipe, start.plan, start.folder),
        train_dataset=start.prepared.train,
        eval_dataset=start.prepared.eval,
        rows_per_step=_section(recipe).rows_per_step,
        batch_tokens=recipe.train.batch_tokens,
        max_length=recipe.data.max_length,
        **start.of_trainer(progress),
    )


def _trial(start: Start, trainer: AnswerTrainer) -> ReferenceCache:
    """The place of the reference. An hour of its log-probabilities is wasted if no step fits."""
    recipe, splits = start.recipe, start.prepared.splits.values()
    dtype = "bfloat16" if models.in_bfloat16(recipe) else "float32"
    digests = [one for split in splits for one in split.digests]
    template, processes = start.tokenizer.chat_template, start.folder.processes
    key = reference_key(trainer.model, digests, template, dtype, ANSWERS, processes)
    cache = ReferenceCache(_section(recipe).reference_cache or start.folder.path / "reference", key, ANSWERS)
    cache.check()
    try_longest(trainer, start.prepared.train, "row", BLANK)
    return cache


def _ready(start: Start, trainer: AnswerTrainer, cache: ReferenceCache) -> None:
    """Both splits with the reference's log-probabilities, from the cache or computed now; the
    model is its reference."""
    splits = {name: (split.forks, split.digests) for name, split in start.prepared.splits.items()}
    values = fill_reference(start, cache, splits, trainer.reference, is_divided(trainer.model))
    train = start.prepared.splits["train"]
    trainer.train_dataset = train.with_reference(values)
    if (held_out := start.prepared.splits.get("eval")) is not None:
        trainer.eval_dataset = held_out.with_reference(values)
    check_reference(trainer, train, values, cache)
    kto = _section(start.recipe)
    if kto.desirable_weight == kto.undesirable_weight:
        trainer.add_callback(StuckLoss(start.say, kto.desirable_weight / 2))


def check_reference(trainer: AnswerTrainer, split: Split, values: Values, cache: ReferenceCache) -> None:
    """Raise InputError where the model and its reference differ before the first step."""
    # the answers that were computed together when the reference was made: what is the same on both sides
    # rounds the same
    size = min(PIECE, len(split.forks))
    rows = list(split.forks.select(range(size)))
    first = divided(rows, ANSWER, trainer.batch_tokens)[0]
    (now,) = trainer.reference([rows[row] for row in first])
    drift = trainer.beta * float(np.mean(now.numpy() - [values[split.digests[row]][0] for row in first]))
    if not abs(drift) <= MOST_DRIFT:
        raise InputError(
            f"the mean reward before the first step is {drift:+.4f} and must be 0: the model is not its own reference. The "
            f"log-probabilities in {cache.folder} are not this base's; delete that folder to compute them anew"
        )


def _questions(prepared: Answers, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """``answer``: the text of the good answers, which the model's own are compared with."""
    if prepared.eval is None:
        return None
    good: Sequence[int] = [row for row, label in enumerate(prepared.eval["label"]) if label]
    if not good:
        return None
    rows = prepared.eval.select(good)
    return rows.add_column(
        "answer", [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["completion_ids"]]
    )


KTO = Stage(
    name="kto",
    prepare=prepare_answers,
    identity=_identity,
    plan=plan_of,
    describe=_describe,
    progress=show_progress,
    trainer=_trainer,
    trial=_trial,
    ready=_ready,
    questions=_questions,
    show=partial(show_measures, measures=measures),
)
