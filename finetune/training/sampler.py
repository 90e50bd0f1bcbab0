"""A batch sampler that deals an epoch's batches out to the processes, each batch once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, Sampler


class ShardedBatchSampler(Sampler[list[int]]):
    """Every ``count``-th batch, beginning with number ``rank``. A process that is left without one at the end gets
    ``filler``, rows that carry no loss, because the others wait for its gradients: none is taken twice, as accelerate
    would have it."""

    def __init__(self, batches: BatchSampler, count: int, rank: int, filler: list[int]) -> None:
        self.batch_sampler, self.sampler = batches, batches.sampler
        self.batch_size, self.drop_last = batches.batch_size, False
        self.count, self.rank, self.filler = count, rank, filler

    def __len__(self) -> int:
        return math.ceil(len(self.batch_sampler) / self.count)

    def __iter__(self) -> Iterator[list[int]]:
        number = -1
        for number, batch in enumerate(self.batch_sampler):
            if number % self.count == self.rank:
                yield batch
        if 0 <= number % self.count < self.rank:
            yield self.filler

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
