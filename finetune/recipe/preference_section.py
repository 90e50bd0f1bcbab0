"""The recipe's sections of other preference stages than DPO: kto, reward."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybrid_ft.finetune.recipe.section import AtLeastOne, Section, Text


class Kto(Section):
    """Preference tuning on answers judged one by one (KTO). With this section each row is an answer and a
    label, good or bad.

    Rows are a prompt and a completion, or messages, beside `label` (or `thumbs_up`, `feedback`, `vote`, ...); of pairs
    the chosen answer is good and the rejected one bad. The reference's log-probabilities are computed once and kept, as
    for pairs. Answers to one prompt are in one step, where the prompt is computed once.
    """

    loss: Literal["kto", "apo_zero_unpaired"] = Field("kto", examples=["apo_zero_unpaired"])
    """TRL's name of the loss. kto (2402.01306): good answers should gain more than answers to other prompts, bad ones
    less; the gain of the latter is the KL term, over the whole step. apo_zero_unpaired (2408.06266): more, or less,
    than zero."""
    beta: float = Field(0.1, gt=0, examples=[0.05])
    """How strongly the model is kept close to the reference."""
    desirable_weight: float = Field(1.0, ge=0, examples=[1.5])
    """Weight of the loss of good answers. All of them together should weigh 1 to 1.33 times as much as all bad ones."""
    undesirable_weight: float = Field(1.0, ge=0, examples=[1.5])
    """Weight of the loss of bad answers."""
    rows_per_step: AtLeastOne = Field(32, examples=[128])
    """Rows per optimizer step, over all processes and micro-batches; at least 2 for kto."""
    reference_cache: Text | None = Field(None, examples=["runs/reference"])
    """A folder for the reference's log-probabilities, which runs may share; null: reference/ in the run's folder."""
    on_long_prompt: Literal["drop", "cut_start", "error"] = Field("drop", examples=["cut_start"])
    """What happens to a prompt that leaves its answer no room. cut_start: its oldest tokens are cut off."""

    @property
    def has_kl(self) -> bool:
        """Whether the loss has a KL term."""
        return self.loss == "kto"


class Reward(Section):
    """A reward model: a score for every answer (TRL's RewardTrainer). With this section the rows are pairs, as for dpo.

    The base's head is replaced by one with a single score, read at an answer's last token; the loss is
    -log sigmoid(score of chosen - score of rejected - margin), Bradley-Terry. A number in a row's `margin` column
    says by how much the chosen answer should be better; 0 if there is none. The new head is initialised from
    train.seed, and LoRA trains all of it.
    """

    center_rewards_coefficient: float | None = Field(None, gt=0, examples=[0.01])
    """Adds this much of (score of chosen + score of rejected)^2 to the loss, so that scores stay around 0 (2312.09244);
    null: nothing."""
    pairs_per_step: AtLeastOne = Field(32, examples=[128])
    """Pairs per optimizer step, over all processes and micro-batches."""
    on_long_prompt: Literal["drop", "cut_start", "error"] = Field("drop", examples=["cut_start"])
    """What happens to a prompt that leaves its answers no room. cut_start: its oldest tokens are cut off."""
