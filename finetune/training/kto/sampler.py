"""Whole steps of neighbouring rows, in another order every epoch."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """The rows from ``bounds[n]`` up to ``bounds[n + 1]`` are a step. ``seed`` and the epoch
    decide the steps' order."""

    def __init__(self, bounds: list[int], seed: int) -> None:
        self.bounds = bounds
        # under this name accelerate tells it the epoch
        self.sampler = SeedableRandomSampler(range(len(bounds) - 1), data_seed=seed)
        self.batch_size, self.drop_last = bounds[1] - bounds[0], False

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.sampler:
            yield list(range(self.bounds[step], self.bounds[step + 1]))
