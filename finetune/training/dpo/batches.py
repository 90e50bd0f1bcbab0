"""A step's pairs as micro-batches of at most so many tokens, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from hybrid_ft.finetune.training.answer_tokens import answer_tokens
from hybrid_ft.finetune.training.portions import micro_batches
from hybrid_ft.finetune.training.shared_prompts import dealt, shared_prompts

Pair = dict[str, Any]
"""prompt_ids, chosen_ids, rejected_ids: list[int]; with a reference also ref_chosen_logps, ref_rejected_logps: float"""

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What a pair takes of a micro-batch's budget: prompt once and both answers."""
ANSWERS = PARTS[1:]


def padded_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of 2P rows, the chosen ones first, with the columns by which a prompt is computed once."""
    batch = DataCollatorForPreference(pad_token_id=pad_token_id).torch_call(list(pairs))
    return batch | shared_prompts([pair["prompt_ids"] for pair in pairs] * 2)


def laid_out_pairs(pairs: Sequence[Pair], pad_token_id: int, forks: bool) -> dict[str, Any]:
    """The same, and ``answers``, by which the model takes it; ``forks``: whether prompts can be shared."""
    batch = padded_pairs(pairs, pad_token_id)
    return batch | {"answers": answer_tokens(batch, forks)}


@dataclass(frozen=True)
class StepCollator:
    """Makes of a step's pairs, the same in every process, the micro-batches of this process.

    budget          tokens of a micro-batch, prompts counted once
    forks           whether prompts can be shared
    by_chosen       the loss is per token of the chosen answers (TRL's ``sft``), so that is what parts of a step weigh
    work            counts a micro-batch's operations: with shared prompts, and with a prompt in every row
    """

    pad_token_id: int
    budget: int
    work: Callable[[Sequence[Pair]], tuple[int, int]]
    forks: bool = True
    by_chosen: bool = False
    processes: int = 1
    process: int = 0

    def __call__(self, pairs: list[Pair]) -> dict[str, Any]:
        """``micro_batches``: TRL's batches with ``share`` (of the step's loss) and ``rows``; ``rows`` and ``tokens`` of
        the whole step, ``work`` of this process's part."""
        portions, tokens = dealt(pairs, ANSWERS, self.budget, self.processes, self.process)
        pad = partial(laid_out_pairs, pad_token_id=self.pad_token_id, forks=self.forks)
        work = [self.work([pairs[pair] for pair in portion or [0]]) for portion in portions]
        return {
            "micro_batches": micro_batches(pairs, portions, pad, self._weight),
            "rows": [pair["row"] for pair in pairs],
            "tokens": tokens,
            "work": [sum(both) for both in zip(*work, strict=True)],
        }

    def _weight(self, pair: Pair) -> int:
        # nothing predicts the first token of a row, so an answer without a prompt has one token less
        return len(pair["chosen_ids"]) - (not pair["prompt_ids"]) if self.by_chosen else 1
