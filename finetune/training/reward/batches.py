"""A step's pairs as TRL's reward trainer takes them, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from hybrid_ft.finetune.training.portions import Row, in_portions, micro_batches, tokens_of
from hybrid_ft.finetune.training.shared_prompts import shared_prompts

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What a pair takes of a micro-batch's budget. A row has also ``margin``, float, and ``row``, its number."""


def padded_pairs(pairs: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of 2P whole rows, the chosen ones first, with the columns by which a prompt is computed once."""
    whole = [
        {side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")} | {"margin": pair["margin"]}
        for pair in pairs
    ]
    batch = DataCollatorForPreference(pad_token_id=pad_token_id).torch_call(whole)
    return batch | shared_prompts([pair["prompt_ids"] for pair in pairs] * 2)


@dataclass(frozen=True)
class StepCollator:
    """Makes of a step's pairs, the same in every process, the micro-batches of this process.

    budget  tokens of a micro-batch, prompts counted once
    work    counts a micro-batch's operations: with shared prompts, and with a prompt in every row
    """

    pad_token_id: int
    budget: int
    work: Callable[[Sequence[Row]], tuple[int, int]]
    processes: int = 1
    process: int = 0

    def __call__(self, pairs: list[Row]) -> dict[str, Any]:
        """``micro_batches``: TRL's batches with ``share`` (of the step's loss) and ``rows``; ``rows`` and ``tokens`` of
        the whole step, ``work`` of this process's part."""
        sizes = [tokens_of(pair, PARTS) for pair in pairs]
        portions = in_portions(sizes, self.budget, self.processes)[self.process]
        work = [self.work([pairs[pair] for pair in portion or [0]]) for portion in portions]
        return {
            "micro_batches": micro_batches(pairs, portions, partial(padded_pairs, pad_token_id=self.pad_token_id)),
            "rows": [pair["row"] for pair in pairs],
            "tokens": sum(sizes),
            "work": [sum(both) for both in zip(*work, strict=True)],
        }
