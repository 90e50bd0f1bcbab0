"""Preference tuning (DPO): from a recipe of pairs to a saved model.

TRL's DPOTrainer trains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig

from hybrid_ft.finetune import models
from hybrid_ft.finetune.data.streaming.prepared import prepare
from hybrid_ft.finetune.recipe.schema import Dpo, Recipe
from hybrid_ft.finetune.runs.folder import RunFolder
from hybrid_ft.finetune.runs.identity import digest
from hybrid_ft.finetune.runs.weights import is_divided
from hybrid_ft.finetune.training import run as training
from hybrid_ft.finetune.training.arguments import arguments
from hybrid_ft.finetune.training.dpo.checks import check_first_loss, check_whole_steps
from hybrid_ft.finetune.training.dpo.metrics import measures, show_progress
from hybrid_ft.finetune.training.dpo.trainer import PairTrainer, StreamedPairTrainer
from hybrid_ft.finetune.training.pair_stage import digest_of_files, is_streamed, plan_of_pairs, trainer_of_pairs
from hybrid_ft.finetune.training.plan import Plan
from hybrid_ft.finetune.training.preference import fill_reference, portions_of, show_measures
from hybrid_ft.finetune.training.progress import ShowProgress
from hybrid_ft.finetune.training.reference_cache import (
    ReferenceCache,
    digests_of,
    reference_key,
    with_reference,
)
from hybrid_ft.finetune.training.stage import Stage, Start
from hybrid_ft.finetune.training.stuck_loss import StuckLoss
from hybrid_ft.finetune.training.trial import try_longest

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def run(recipe: Recipe, console: Console, accept_changes: bool = False, extend: bool = False) -> int:
    """As ``training.run.run``."""
    return training.run(recipe, DPO, console, accept_changes, extend)


@dataclass(frozen=True)
class Pairs:
    """Prepared pairs, of a stream a sample; ``digests`` stand for the tokens of every pair, by split."""

    train: Dataset
    eval: Dataset | None
    report: Any
    eos_token_ids: list[int]
    chat_template: str | None
    template_arguments: dict[str, Any]
    digests: dict[str, list[bytes]]
    kept: Any
    """what was prepared, whose folder goes when it does"""

    @classmethod
    def of(cls, prepared: Any) -> Pairs:
        """With a digest of each pair's tokens, by which the cache of reference log-probabilities knows it."""
        digests = {"train": digests_of(prepared.train)}
        if prepared.eval is not None:
            digests["eval"] = digests_of(prepared.eval)
        return cls(
            prepared.train,
            prepared.eval,
            prepared.report,
            prepared.eos_token_ids,
            prepared.chat_template,
            prepared.template_arguments,
            digests,
            prepared,
        )

    @property
    def streamed(self) -> bool:
        return is_streamed(self)

    def known(self) -> dict[str, tuple[Dataset, list[bytes]]]:
        """Pairs and their digests, by split, whose reference is computed before the first step: of a stream those
        held out."""
        splits = {"eval": self.eval} if self.streamed else {"train": self.train, "eval": self.eval}
        return {name: (pairs, self.digests[name]) for name, pairs in splits.items() if pairs is not None}


def prepare_checked(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Raises InputError for data that cannot be used, or not with this loss."""
    pairs = Pairs.of(prepare(recipe, tokenizer))
    check_whole_steps(recipe, pairs.train)
    return pairs


def _section(recipe: Recipe) -> Dpo:
    assert recipe.dpo is not None, "a recipe of pairs has a dpo section"
    return recipe.dpo


def _identity(pairs: Pairs) -> dict[str, str]:
    """The tokens of every pair, in order; of a stream those of the sample, and its files."""
    rows = digest(b"|".join(b"".join(pairs.digests[name]) for name in sorted(pairs.digests)))
    return {"rows": rows} | digest_of_files(pairs)


def plan_of(recipe: Recipe, pairs: Any, processes: int = 1) -> Plan:
    """A step is its pairs, however many processes share them."""
    return plan_of_pairs(recipe, pairs, _section(recipe).pairs_per_step)


def _describe(start: Start) -> tuple[str, str]:
    dpo = _section(start.recipe)
    portions = portions_of(start, dpo.pairs_per_step, "pairs")
    return portions, f"loss {dpo.loss}, beta {dpo.beta:g}, "


def dpo_arguments(recipe: Recipe, plan: Plan, folder: RunFolder) -> DPOConfig:
    """TRL's."""
    dpo = _section(recipe)
    return arguments(
        DPOConfig,
        recipe,
        plan,
        folder,
        loss_type=[dpo.loss],
        beta=dpo.beta,
        label_smoothing=dpo.label_smoothing,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=dpo.pairs_per_step,
        gradient_accumulation_steps=1,
        # a stream goes on from its own state
        ignore_data_skip=recipe.data.streaming,
    )


def _trainer(start: Start, model: PreTrainedModel | PeftModel, progress: ShowProgress) -> PairTrainer:
    args, size = dpo_arguments(start.recipe, start.plan, start.folder), _section(start.recipe).pairs_per_step
    trainer: PairTrainer = trainer_of_pairs(start, model, progress, args, size, PairTrainer, StreamedPairTrainer)
    return trainer


def _trial(start: Start, trainer: PairTrainer) -> ReferenceCache | None:
    """The place of the reference, None where nothing of it is kept. An hour of its log-probabilities is wasted if no
    step fits."""
    recipe, cache, blank = start.recipe, None, {"ref_chosen_logps": 0.0, "ref_rejected_logps": 0.0}
    if known := start.prepared.known():
        dtype = "bfloat16" if models.in_bfloat16(recipe) else "float32"
        template, processes = start.tokenizer.chat_template, start.folder.processes
        digests = [one for _, digests in known.values() for one in digests]
        key = reference_key(trainer.model, digests, template, dtype, processes=processes)
        cache = ReferenceCache(_section(recipe).reference_cache or start.folder.path / "reference", key)
        cache.check()
    if isinstance(trainer, StreamedPairTrainer):
        trainer.keep_start()
        blank = {}
    try_longest(trainer, start.prepared.train, "pair", blank)
    return cache


def _ready(start: Start, trainer: PairTrainer, cache: ReferenceCache | None) -> None:
    """Both splits with the reference's log-probabilities, from the cache or computed now, but those of a stream's
    pairs, which come with them; the model is its reference."""
    if cache is not None:
        known = start.prepared.known()
        values = fill_reference(start, cache, known, trainer.reference, is_divided(trainer.model))
        filled = {name: with_reference(rows, digests, values) for name, (rows, digests) in known.items()}
        trainer.train_dataset = filled.get("train", trainer.train_dataset)
        trainer.eval_dataset = filled.get("eval")
    if start.prepared.streamed:
        start.say("reference computed with each micro-batch, from a copy of the trained weights as they start")
    trainer.add_callback(StuckLoss(start.say, check_first_loss(trainer, cache.folder if cache else None)))


def _questions(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Dataset | None:
    """``answer``: the text of the chosen answers, which the model's own are compared with."""
    if pairs.eval is None:
        return None
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in pairs.eval["chosen_ids"]]
    return pairs.eval.add_column("answer", texts)


DPO = Stage(
    name="dpo",
    prepare=prepare_checked,
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
