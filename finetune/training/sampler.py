"""A batch sampler that deals batches to the processes, each once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, Sampler


class ShardedBatchSampler(Sampler[list[int]]):
    """Of the ``a_step`` batches of each step every ``count``-th, beginning with number ``rank``.

    A process that is left without one gets ``filler``, rows that carry no loss, because the others wait
    for its gradients: no batch is taken twice, as accelerate would have it. So a step is the same
    batches whatever ``count`` is.
    """

    def __init__(self, batches: BatchSampler, count: int, rank: int, filler: list[int], a_step: int) -> None:
        self.batch_sampler, self.sampler = batches, batches.sampler
        self.batch_size, self.drop_last = batches.batch_size, False
        self.count, self.rank, self.filler, self.a_step = count, rank, filler, a_step

    def __len__(self) -> int:
        whole, rest = divmod(len(self.batch_sampler), self.a_step)
        return whole * math.ceil(self.a_step / self.count) + math.ceil(rest / self.count)

    def __iter__(self) -> Iterator[list[int]]:
        batches = iter(self.batch_sampler)
        while step := list(islice(batches, self.a_step)):
            for first in range(0, len(step), self.count):
                mine = first + self.rank
                yield step[mine] if mine < len(step) else self.filler

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.sampler
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
