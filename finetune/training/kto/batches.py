"""A step's judged answers and its mismatched ones as micro-batches.

The KL term of KTO is measured on answers to other prompts. A step's answers are handed on by some places within the
step, so that the mismatched answers are the step's own, as TRL's are, and none stands at its own prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from datasets import Dataset
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from hybrid_ft.finetune.training.answer_tokens import answer_tokens
from hybrid_ft.finetune.training.portions import Row, micro_batches
from hybrid_ft.finetune.training.shared_prompts import dealt, shared_prompts

PARTS = ("prompt_ids", "completion_ids")
"""What a judged answer takes of a micro-batch's budget. A row has also ``label``, bool, and with a reference
``ref_logps`` and, where there is a KL term, ``ref_KL_logps``: float."""
ANSWER = ("completion_ids",)


def bounds_of(rows: int, a_step: int) -> list[int]:
    """Where each step begins, and the end: ``a_step`` rows each, the last fewer. A single one, which has no other to be
    mismatched with, is added to the step before."""
    bounds = [*range(0, rows, a_step), rows]
    if len(bounds) > 2 and rows - bounds[-2] == 1:
        del bounds[-2]
    return bounds


def partners_of(prompts: Sequence[Hashable]) -> list[int]:
    """For each row of a step the one whose answer is put to its prompt, each once: the row before, as in TRL, or where
    answers to one prompt stand side by side as many before as there are of these."""
    count = len(prompts)
    shift = max(1, min(max(Counter(prompts).values()), count // 2))
    return [(row - shift) % count for row in range(count)]


def mismatched(rows: Sequence[Row], max_length: int) -> list[Row]:
    """The step's rows with each other's answers, cut to ``max_length`` tokens as TRL does, and the reference's
    log-probabilities of these."""
    others = partners_of([tuple(row["prompt_ids"]) for row in rows])
    return [
        row
        | {"completion_ids": rows[other]["completion_ids"][: max(1, max_length - len(row["prompt_ids"]))]}
        | {"ref_logps": row.get("ref_KL_logps", 0.0)}
        for row, other in zip(rows, others, strict=True)
    ]


def padded_answers(rows: Sequence[Row], pad_token_id: int) -> dict[str, Any]:
    """TRL's batch, with the columns by which a prompt is computed once."""
    batch = DataCollatorForUnpairedPreference(pad_token_id=pad_token_id).torch_call(list(rows))
    batch.pop("ref_KL_logps", None)
    return batch | shared_prompts([row["prompt_ids"] for row in rows])


def laid_out_answers(rows: Sequence[Row], pad_token_id: int, forks: bool) -> dict[str, Any]:
    """The same, and ``answers``, by which the model takes it; ``forks``: whether prompts can be shared."""
    batch = padded_answers(rows, pad_token_id)
    return batch | {"answers": answer_tokens(batch, forks)}


@dataclass(frozen=True)
class StepCollator:
    """Makes of a step's rows, the same in every process, the micro-batches of this process.

    budget      tokens of a micro-batch, prompts counted once
    max_length  tokens of a prompt with a mismatched answer; None for a loss without a KL term
    work        counts a micro-batch's operations: with shared prompts, and with a prompt in every row
    forks       whether prompts can be shared
    forward     share of these operations that a forward pass alone is
    """

    pad_token_id: int
    budget: int
    max_length: int | None
    work: Callable[[Sequence[Row]], tuple[int, int]]
    forks: bool
    forward: float
    processes: int = 1
    process: int = 0

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """``micro_batches`` and ``mismatched``: TRL's batches with ``share`` and ``rows``; ``rows`` and ``tokens`` of
        the whole step, ``work`` of this process's part."""
        pad = partial(laid_out_answers, pad_token_id=self.pad_token_id, forks=self.forks)
        portions, tokens = dealt(rows, ANSWER, self.budget, self.processes, self.process)
        work = self._work(rows, portions, 1.0)
        step: dict[str, Any] = {"micro_batches": micro_batches(rows, portions, pad), "mismatched": []}
        if self.max_length is not None:
            others = mismatched(rows, self.max_length)
            portions, _ = dealt(others, ANSWER, self.budget, self.processes, self.process)
            step["mismatched"] = micro_batches(others, portions, pad)
            work = [sum(both) for both in zip(work, self._work(others, portions, self.forward), strict=True)]
        return step | {"rows": [row["row"] for row in rows], "tokens": tokens, "work": work}

    def _work(self, rows: Sequence[Row], portions: list[list[int]], share: float) -> list[int]:
        each = [self.work([rows[row] for row in portion or [0]]) for portion in portions]
        return [round(share * sum(both)) for both in zip(*each, strict=True)]


def forks_of(rows: Dataset, prompts: Sequence[Hashable], bounds: Sequence[int], max_length: int | None) -> Dataset:
    """Every answer at its own prompt and, with ``max_length``, the mismatched one after it, put together when it is
    asked for: ``prompt_ids``, ``completion_ids`` and ``origin``. ``prompts`` stand for the rows' prompts."""
    sides = 1 if max_length is None else 2
    partners = [first + partner for first, last in pairwise(bounds) for partner in partners_of(prompts[first:last])]

    def put_together(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        forks = [divmod(fork, sides) for fork in batch["fork"]]
        answers = [partners[row] if mismatched else row for row, mismatched in forks]
        wanted = sorted({row for row, _ in forks} | set(answers))
        place, members = {row: number for number, row in enumerate(wanted)}, rows[wanted]
        columns: dict[str, list[Any]] = {"prompt_ids": [], "completion_ids": [], "origin": []}
        for (row, mismatched), answer in zip(forks, answers, strict=True):
            prompt, completion = members["prompt_ids"][place[row]], members["completion_ids"][place[answer]]
            room = max(1, max_length - len(prompt)) if mismatched and max_length is not None else None
            columns["prompt_ids"].append(prompt)
            columns["completion_ids"].append(completion[:room])
            columns["origin"].append(members["origin"][place[row]])
        return columns

    return Dataset.from_dict({"fork": list(range(sides * len(rows)))}).with_transform(put_together)
