"""A step's pairs as micro-batches of at most so many tokens, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset
from transformers import PreTrainedConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference

from hybrid_ft.finetune.data.packing import pack
from hybrid_ft.hybrid_model.flops import training_flops

Pair = dict[str, Any]
"""prompt_ids, chosen_ids, rejected_ids: list[int]; with a reference also ref_chosen_logps, ref_rejected_logps: float"""


def tokens_of(pair: Pair) -> int:
    """Prompt once and both answers: what a pair takes of a micro-batch's budget."""
    return len(pair["prompt_ids"]) + len(pair["chosen_ids"]) + len(pair["rejected_ids"])


def sizes_of(pairs: Dataset) -> list[int]:
    """The same of every pair, without reading the tokens."""
    sizes: list[int] = []
    for table in pairs.with_format("arrow").iter(10_000):
        columns = [
            pc.list_value_length(table[name]).to_numpy() for name in ("prompt_ids", "chosen_ids", "rejected_ids")
        ]
        sizes += sum(columns).tolist()
    return sizes


def padded_pairs(pairs: Sequence[Pair], pad_token_id: int) -> dict[str, torch.Tensor]:
    """TRL's batch of 2P rows, the chosen ones first, with the columns by which a prompt is computed once.

    prompt_lengths  int64 [2P]
    prompt_rows     int64 [2P], the first row with the same prompt
    """
    batch = DataCollatorForPreference(pad_token_id=pad_token_id).torch_call(list(pairs))
    prompts = [tuple(pair["prompt_ids"]) for pair in pairs] * 2
    first: dict[tuple[int, ...], int] = {}
    batch["prompt_lengths"] = torch.tensor([len(prompt) for prompt in prompts])
    batch["prompt_rows"] = torch.tensor([first.setdefault(prompt, row) for row, prompt in enumerate(prompts)])
    return batch


def in_portions(sizes: Sequence[int], budget: int, processes: int = 1) -> list[list[list[int]]]:
    """For each process its micro-batches, as many for one as for another; each of at most ``budget`` tokens.

    A step has fewer pairs than processes at most at an epoch's end; a process that is left without any gets empty
    micro-batches, because the others wait for its gradients.
    """
    portions = pack(sizes, budget)
    while len(portions) % processes:
        # every process must take as many: halving the fullest costs one more forward, no more memory
        largest = max(portions, key=len)
        if len(largest) < 2:
            portions.append([])
            continue
        portions.remove(largest)
        portions += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    portions.sort(key=lambda portion: -sum(sizes[pair] for pair in portion))
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    for start in range(0, len(portions), processes):
        # the process with the least work so far gets the largest of the next ones
        order = sorted(range(processes), key=lambda p: sum(sizes[pair] for portion in shares[p] for pair in portion))
        for process, portion in zip(order, portions[start : start + processes], strict=True):
            shares[process].append(portion)
    return shares


@dataclass(frozen=True)
class StepCollator:
    """Makes of a step's pairs, the same in every process, the micro-batches of this process.

    budget          tokens of a micro-batch, prompts counted once
    by_chosen       the loss is per token of the chosen answers (TRL's ``sft``), so that is what parts of a step weigh
    work            counts a micro-batch's operations: with shared prompts, and with a prompt in every row
    """

    pad_token_id: int
    budget: int
    work: Callable[[Sequence[Pair]], tuple[int, int]]
    by_chosen: bool = False
    processes: int = 1
    process: int = 0

    def __call__(self, pairs: list[Pair]) -> dict[str, Any]:
        """``micro_batches``: TRL's batches with ``share`` (of the step's loss) and ``rows``; ``rows`` and ``tokens`` of
        the whole step, ``work`` of this process's part."""
        sizes = [tokens_of(pair) for pair in pairs]
        portions = in_portions(sizes, self.budget, self.processes)[self.process]
        whole = sum(map(self._weight, pairs))
        micro_batches, work = [], [0, 0]
        for portion in portions:
            members = [pairs[pair] for pair in portion or [0]]
            batch: dict[str, Any] = padded_pairs(members, self.pad_token_id)
            batch["share"] = sum(map(self._weight, members)) / whole if portion else 0.0
            batch["rows"] = [pair["row"] for pair in members]
            micro_batches.append(batch)
            work = [sum(both) for both in zip(work, self.work(members))]
        return {
            "micro_batches": micro_batches,
            "rows": [pair["row"] for pair in pairs],
            "tokens": sum(sizes),
            "work": work,
        }

    def _weight(self, pair: Pair) -> int:
        # nothing predicts the first token of a row, so an answer without a prompt has one token less
        return len(pair["chosen_ids"]) - (not pair["prompt_ids"]) if self.by_chosen else 1


def count_work(config: PreTrainedConfig, frozen_weights: bool) -> Callable[[Sequence[Pair]], tuple[int, int]]:
    """Operations of a training step on pairs: each prompt once, and each prompt in every row; padding is not counted."""

    def count(pairs: Sequence[Pair]) -> tuple[int, int]:
        prompts = list(dict.fromkeys(tuple(pair["prompt_ids"]) for pair in pairs))
        place = {prompt: number for number, prompt in enumerate(prompts)}
        lengths, parents, rows = [len(prompt) for prompt in prompts], [-1] * len(prompts), []
        for pair in pairs:
            for answer in (pair["chosen_ids"], pair["rejected_ids"]):
                lengths.append(len(answer))
                parents.append(place[tuple(pair["prompt_ids"])])
                rows.append(len(pair["prompt_ids"]) + len(answer))
        projected = sum(lengths[len(prompts) :])
        return (
            training_flops(config, lengths, parents, projected, frozen_weights),
            training_flops(config, rows, None, projected, frozen_weights),
        )

    return count
