"""The recipe's sections of preference stages on judged answers: kto."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hybrid_ft.finetune.recipe.section import AtLeastOne, Section, Text


class Kto(Section):
    """Preference tuning on answers that were judged alone (KTO). Present: each row is an answer and a label, good or bad.

    Rows are a prompt and a completion, or messages, beside `label` (or `thumbs_up`, `feedback`, `vote`, ...); of pairs the
    chosen answer is good and the rejected one bad. The reference's log-probabilities are computed once and kept, as for
    pairs. Answers to one prompt stand in one step, where the prompt is computed once.
    """

    loss: Literal["kto", "apo_zero_unpaired"] = Field("kto", examples=["apo_zero_unpaired"])
    """TRL's name of the loss. kto (2402.01306): good answers are to gain more than answers to other prompts do, bad ones
    less; the latter is the KL term, of the whole step. apo_zero_unpaired (2408.06266): more, or less, than nothing."""
    beta: float = Field(0.1, gt=0, examples=[0.05])
    """How strongly the model is held to the reference."""
    desirable_weight: float = Field(1.0, ge=0, examples=[1.5])
    """Weight of the loss of good answers. All of them together are to weigh 1 to 1.33 times as much as all bad ones."""
    undesirable_weight: float = Field(1.0, ge=0, examples=[1.5])
    """Weight of the loss of bad answers."""
    rows_per_step: AtLeastOne = Field(32, examples=[128])
    """Rows of one optimizer step, over all processes, however many micro-batches they fill; at least 2 for kto."""
    reference_cache: Text | None = Field(None, examples=["runs/reference"])
    """A folder for the reference's log-probabilities, which runs may share; null: reference/ in the run's folder."""
    on_long_prompt: Literal["drop", "cut_start", "error"] = Field("drop", examples=["cut_start"])
    """What becomes of a prompt that leaves its answer no room. cut_start: its oldest tokens go."""

    @property
    def has_kl(self) -> bool:
        """Whether the loss has a KL term."""
        return self.loss == "kto"
