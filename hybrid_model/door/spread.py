"""A flat row whose tokens lie with several processes, a run of them each.

What is computed token by token (embeddings, projections, norms, the MLP, the loss) is computed where the token lies.
What mixes tokens is computed by heads: ``layers/heads.py`` exchanges them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, eq=False)
class Spread:
    """``tokens`` of each process of a ``group`` of torch's, in their order in the row; this
    process is number ``rank``."""

    tokens: tuple[int, ...]
    rank: int
    group: Any

    @classmethod
    def of(cls, tokens: int, size: int, rank: int, group: Any) -> Spread:
        """A row of that many tokens over ``size`` processes, as evenly as it goes."""
        return cls(cut(tokens, size), rank, group)

    @property
    def own(self) -> slice:
        """This process's tokens among all."""
        start = sum(self.tokens[: self.rank])
        return slice(start, start + self.tokens[self.rank])


def cut(total: int, size: int) -> tuple[int, ...]:
    """The whole in ``size`` parts that differ by one at most, the larger ones first."""
    return tuple(total // size + (part < total % size) for part in range(size))


class _Sum(torch.autograd.Function):
    """Over the processes, in each of them; the gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _Sum.apply(grad.contiguous(), ctx.group), None


def summed(x: torch.Tensor, spread: Spread | None) -> torch.Tensor:
    """The sum of ``x`` over the processes that hold a row's tokens, with gradients."""
    return x if spread is None else _Sum.apply(x.contiguous(), spread.group)
