"""Pairs of one prompt side by side, the prompts in another order every epoch."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from torch.utils.data import Sampler

from hybrid_ft.finetune.training.shared_prompts import order_of


class PromptSampler(Sampler[int]):
    """Row numbers; ``prompts`` stand for the rows' prompts. ``seed`` and the epoch decide the order."""

    def __init__(self, prompts: Sequence[Hashable], seed: int) -> None:
        self.prompts, self.seed, self.epoch = prompts, seed, 0

    def __len__(self) -> int:
        return len(self.prompts)

    def __iter__(self) -> Iterator[int]:
        return iter(order_of(self.prompts, [self.seed, self.epoch]))

    def set_epoch(self, epoch: int) -> None:
        """accelerate tells it."""
        self.epoch = epoch
