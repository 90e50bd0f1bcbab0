"""TRL's RewardTrainer on pairs whose prompts are computed once.

Its loss runs unchanged on the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from trl import RewardTrainer

from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.pair_steps import PARTS, PairCollator
from hybrid_ft.finetune.training.portions import Row
from hybrid_ft.finetune.training.reward.batches import padded_pairs
from hybrid_ft.finetune.training.reward.metrics import ScoreSums
from hybrid_ft.finetune.training.shared_prompts import count_work
from hybrid_ft.finetune.training.step_trainer import StepTrainer
from hybrid_ft.finetune.training.streamed import StreamedTrainer


class ScoreTrainer(StepTrainer, RewardTrainer):
    """``train_dataset`` and ``eval_dataset`` have the columns of ``PARTS``, ``margin`` and ``row``.

    pairs_per_step  over all processes; in a micro-batch of ``batch_tokens`` each prompt counts once
    """

    parts = PARTS

    def __init__(self, *args: Any, pairs_per_step: int, **kwargs: Any) -> None:
        super().__init__(*args, rows_per_step=pairs_per_step, **kwargs)
        plain = seams.plain_model(self.model)
        self.pad_token_id = plain.config.pad_token_id
        self.sums = {mode: ScoreSums() for mode in ("train", "eval")}
        self.data_collator = PairCollator(
            partial(padded_pairs, pad_token_id=self.pad_token_id),
            self.batch_tokens,
            count_work(plain.config, frozen_weights=plain is not self.model, head=False),
            processes=self.team.count,
            process=self.team.number,
        )

    def padded(self, rows: Sequence[Row]) -> dict[str, Any]:
        return padded_pairs(rows, self.pad_token_id)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        mode = "train" if self.model.training else "eval"
        seen: list[torch.Tensor] = []
        loss = super().compute_loss(_heard(model, seen), inputs, *args, **kwargs)
        if self.counted:
            self.sums[mode].add(seen[0])
        return loss


def _heard(model: Any, seen: list[torch.Tensor]) -> Any:
    """``model``, whose scores ``seen`` receives."""

    def forward(margin: Any = None, **inputs: Any) -> Any:
        outputs = model(**inputs)
        # the loss in 32 bits, also where no trainer has made the model's outputs that
        outputs.logits = outputs.logits.float()
        seen.append(outputs.logits.detach())
        return outputs

    return forward


class StreamedScoreTrainer(StreamedTrainer, ScoreTrainer):
    """A reward model on a stream of pairs."""
