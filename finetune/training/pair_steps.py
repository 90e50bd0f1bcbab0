"""Steps of preference pairs: their order, and their micro-batches, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch.utils.data import Sampler

from hybrid_ft.finetune.data.prompt_order import order_of
from hybrid_ft.finetune.training.portions import Row, micro_batches
from hybrid_ft.finetune.training.reference_cache import digest_of_tokens
from hybrid_ft.finetune.training.shared_prompts import dealt

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.streaming.source_stream import State
    from hybrid_ft.finetune.data.streaming.stream_rows import StreamPair
    from hybrid_ft.finetune.recipe.schema import Recipe

PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
"""What a pair takes of a micro-batch's budget: prompt once and both answers. It has also ``row``, its number."""
ANSWERS = PARTS[1:]


@dataclass(frozen=True)
class PairCollator:
    """Makes of a step's pairs, the same in every process, the micro-batches of this process.

    pad     makes TRL's batch of some pairs
    budget  tokens of a micro-batch, prompts counted once
    work    counts a micro-batch's operations: with shared prompts, and with a prompt in every row
    weight  of a pair in the step's loss
    """

    pad: Callable[[Sequence[Row]], dict[str, Any]]
    budget: int
    work: Callable[[Sequence[Row]], tuple[int, int]]
    weight: Callable[[Row], float] = lambda pair: 1
    processes: int = 1
    process: int = 0

    def __call__(self, pairs: list[Row]) -> dict[str, Any]:
        """``micro_batches``: what ``pad`` makes, with ``share`` (of the step's loss) and ``rows``; ``rows`` and
        ``tokens`` of the whole step, ``work`` of this process's part."""
        portions, tokens = dealt(pairs, ANSWERS, self.budget, self.processes, self.process)
        work = [self.work([pairs[pair] for pair in portion or [0]]) for portion in portions]
        return {
            "micro_batches": micro_batches(pairs, portions, self.pad, self.weight),
            "rows": [pair["row"] for pair in pairs],
            "tokens": tokens,
            "work": [sum(both) for both in zip(*work, strict=True)],
        }


class PromptSampler(Sampler[int]):
    """Row numbers, those of one prompt side by side; ``prompts`` stand for the rows' prompts, ``seed`` and the
    epoch decide the order."""

    def __init__(self, prompts: Sequence[Hashable], seed: int) -> None:
        self.prompts, self.seed, self.epoch = prompts, seed, 0

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[int]:
        return iter(order_of(self.prompts, [self.seed, self.epoch]))

    def set_epoch(self, epoch: int) -> None:
        """accelerate tells it."""
        self.epoch = epoch


def steps_of_pairs(packs: Iterator[tuple[list[StreamPair], State]]) -> Iterator[tuple[list[Row], State]]:
    """The steps of a stream of pairs, whole in every process, as rows for the collator; they are
    named by their origins."""
    for pairs, state in packs:
        yield [_row(pair) for pair in pairs], state


def _row(pair: StreamPair) -> Row:
    parts = {name: part.tolist() for name, part in zip(PARTS, pair.parts, strict=True)}
    return (
        parts | {"origin": pair.origin, "row": pair.origin} | ({} if pair.margin is None else {"margin": pair.margin})
    )


def prompts_to_keep(recipe: Recipe, pairs: Dataset) -> list[bytes] | None:
    """Where lists give all their pairs, what stands for the prompt of each: those of one prompt go into one step."""
    if all(source.pairs != "all" for source in recipe.data.sources):
        return None
    return [digest_of_tokens([prompt]) for prompt in pairs["prompt_ids"]]
