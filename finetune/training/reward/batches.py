"""A step's pairs as TRL's reward trainer takes them, each prompt once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from trl.trainer.reward_trainer import DataCollatorForPreference

from hybrid_ft.finetune.training.portions import Row
from hybrid_ft.finetune.training.shared_prompts import shared_prompts


def padded_pairs(pairs: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of 2P whole rows, the chosen ones first, of pairs with a ``margin``, float, with the columns by which
    a prompt is computed once."""
    whole = [
        {side: pair["prompt_ids"] + pair[side] for side in ("chosen_ids", "rejected_ids")} | {"margin": pair["margin"]}
        for pair in pairs
    ]
    batch = DataCollatorForPreference(pad_token_id=pad_token_id).torch_call(whole)
    return batch | shared_prompts([pair["prompt_ids"] for pair in pairs] * 2)
