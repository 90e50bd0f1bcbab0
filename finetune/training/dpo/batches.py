"""Pairs as TRL's DPO trainer takes them, each prompt once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from hybrid_ft.finetune.training.answer_tokens import answer_tokens
from hybrid_ft.finetune.training.shared_prompts import shared_prompts

Pair = dict[str, Any]
"""prompt_ids, chosen_ids, rejected_ids: list[int]; with a reference also ref_chosen_logps, ref_rejected_logps: float"""


def padded_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of 2P rows, the chosen ones first, with the columns by which a prompt is computed once."""
    batch = DataCollatorForPreference(pad_token_id=pad_token_id).torch_call(list(pairs))
    return batch | shared_prompts([pair["prompt_ids"] for pair in pairs] * 2)


def laid_out_pairs(pairs: Sequence[Pair], pad_token_id: int, forks: bool) -> dict[str, Any]:
    """The same, and ``answers``, by which the model takes it; ``forks``: whether prompts can be shared."""
    batch = padded_pairs(pairs, pad_token_id)
    return batch | {"answers": answer_tokens(batch, forks)}


def chosen_tokens(pair: Pair) -> int:
    """What a pair weighs in a loss per token of the chosen answers, TRL's ``sft``."""
    # nothing predicts the first token of a row, so an answer without a prompt has one token less
    return len(pair["chosen_ids"]) - (not pair["prompt_ids"])
