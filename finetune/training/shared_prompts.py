"""Rows that begin with the same prompt, and the work this saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.hybrid_model.flops import training_flops

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def shared_prompts(prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    """The columns by which the model computes a prompt once for all rows that begin with it.

    prompt_lengths  int64 [B]
    prompt_rows     int64 [B], the first row with the same prompt
    """
    first: dict[tuple[int, ...], int] = {}
    return {
        "prompt_lengths": torch.tensor([len(prompt) for prompt in prompts]),
        "prompt_rows": torch.tensor([first.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]),
    }


def count_work(
    config: PreTrainedConfig,
    frozen_weights: bool,
    answers: Sequence[str] = ("chosen_ids", "rejected_ids"),
    head: bool = True,
) -> Callable[[Sequence[dict[str, Any]]], tuple[int, int]]:
    """Operations of a training step on rows with these answers: each prompt once, and each prompt in every answer's row;
    padding is not counted. ``head``: the answers' tokens are projected to the vocabulary."""

    def count(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
        prompts = list(dict.fromkeys(tuple(row["prompt_ids"]) for row in rows))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        lengths, parents, whole = [len(prompt) for prompt in prompts], [-1] * len(prompts), []
        for row in rows:
            for answer in (row[name] for name in answers):
                lengths.append(len(answer))
                parents.append(place[tuple(row["prompt_ids"])])
                whole.append(len(row["prompt_ids"]) + len(answer))
        projected = sum(lengths[len(prompts) :]) if head else 0
        return (
            training_flops(config, lengths, parents, projected, frozen_weights),
            training_flops(config, whole, None, projected, frozen_weights),
        )

    return count
