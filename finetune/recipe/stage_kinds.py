"""The stages that train, one line each: what the other files need of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StageKind:
    """What differs between stages outside their own folders; the recipe's section of that name has the keys of one.

    help      begins the command's help
    title     what was done, on a result's card
    record    module and name of its ``training.stage.Stage``
    full      learning rate of all weights
    lora      learning rate of adapters
    rows      what its rows are called
    per_step  the key of its section that says how many of them make a step; "" where ``train`` says it
    purpose   what a recipe with such a section is for
    file      a recipe's name, as an example
    """

    help: str
    title: str
    record: str
    full: float
    lora: float
    rows: str
    per_step: str
    purpose: str
    file: str


_TRAINING = "hybrid_ft.finetune.training"
STAGE_KINDS = {
    "sft": StageKind(
        help="Fine-tune a model (SFT) as a recipe says.",
        title="supervised fine-tuning (SFT)",
        record=f"{_TRAINING}.sft.stage:SFT",
        full=2.5e-5,
        lora=2e-4,
        rows="rows",
        per_step="",
        purpose="supervised fine-tuning",
        file="mine.yaml",
    ),
    "dpo": StageKind(
        help="Preference-tune (DPO) a model on pairs of answers.",
        title="preference tuning (DPO)",
        record=f"{_TRAINING}.dpo.stage:DPO",
        full=1e-6,
        lora=1e-5,
        rows="pairs",
        per_step="pairs_per_step",
        purpose="pairs",
        file="preferences.yaml",
    ),
    "kto": StageKind(
        help="Preference-tune (KTO) a model on answers judged good or bad.",
        title="preference tuning on judged answers (KTO)",
        record=f"{_TRAINING}.kto.stage:KTO",
        full=1e-6,
        lora=1e-5,
        rows="judged answers",
        per_step="rows_per_step",
        purpose="judged answers",
        file="judged.yaml",
    ),
    "reward": StageKind(
        help="Train a reward model, which scores answers, on pairs.",
        title="training a reward model",
        record=f"{_TRAINING}.reward.stage:REWARD",
        full=1e-5,
        lora=1e-4,
        rows="pairs",
        per_step="pairs_per_step",
        purpose="a reward model",
        file="reward.yaml",
    ),
}
PREFERENCE = tuple(name for name in STAGE_KINDS if name != "sft")
"""The sections of a recipe that are stages; without one of them it is for supervised fine-tuning."""
