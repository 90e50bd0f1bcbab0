"""Rows that begin with the same prompt, and the work this saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from hybrid_ft.finetune.training.portions import in_portions
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


def clusters_of(
    rows: Sequence[dict[str, Any]], answers: Sequence[str], budget: int
) -> tuple[list[list[int]], list[int]]:
    """Rows of one prompt together, as many as ``budget`` takes, and the tokens of each cluster: its prompt once, and
    each of the answers in these columns once."""
    clusters: list[list[int]] = []
    sizes: list[int] = []
    held: list[set[tuple[int, ...]]] = []
    open_cluster: dict[tuple[int, ...], int] = {}
    for number, row in enumerate(rows):
        prompt, own = tuple(row["prompt_ids"]), {tuple(row[name]) for name in answers}
        place = open_cluster.get(prompt)
        if place is None or sizes[place] + sum(map(len, own - held[place])) > budget:
            place = open_cluster[prompt] = len(clusters)
            clusters.append([])
            sizes.append(len(prompt))
            held.append(set())
        clusters[place].append(number)
        sizes[place] += sum(map(len, own - held[place]))
        held[place] |= own
    return clusters, sizes


def divided(rows: Sequence[dict[str, Any]], answers: Sequence[str], budget: int) -> list[list[int]]:
    """The rows in portions of at most ``budget`` tokens, those of one prompt together."""
    return dealt(rows, answers, budget, 1, 0)[0]


def dealt(
    rows: Sequence[dict[str, Any]], answers: Sequence[str], budget: int, processes: int, process: int
) -> tuple[list[list[int]], int]:
    """The micro-batches of one process: rows in portions of at most ``budget`` tokens, those of one prompt together; as
    many portions as another has, empty where nothing is left. And the tokens of all rows."""
    clusters, sizes = clusters_of(rows, answers, budget)
    mine = in_portions(sizes, budget, processes)[process]
    return [[row for cluster in portion for row in clusters[cluster]] for portion in mine], sum(sizes)


def count_work(
    config: PreTrainedConfig,
    frozen_weights: bool,
    answers: Sequence[str] = ("chosen_ids", "rejected_ids"),
    head: bool = True,
) -> Callable[[Sequence[dict[str, Any]]], tuple[int, int]]:
    """Operations of a training step on rows with these answers: each prompt and each answer to it once, and each in
    every row; padding is not counted. ``head``: the answers' tokens are projected to the vocabulary."""

    def count(rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
        forks: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        whole, projected = [], 0
        for row in rows:
            own = forks.setdefault(tuple(row["prompt_ids"]), {})
            for name in answers:
                own[tuple(row[name])] = None
                whole.append(len(row["prompt_ids"]) + len(row[name]))
                projected += len(row[name]) if head else 0
        lengths, parents = [len(prompt) for prompt in forks], [-1] * len(forks)
        for place, own in enumerate(forks.values()):
            lengths += map(len, own)
            parents += [place] * len(own)
        return (
            training_flops(config, lengths, parents, projected, frozen_weights),
            training_flops(config, whole, None, projected, frozen_weights),
        )

    return count
