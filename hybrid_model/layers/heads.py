"""Exchange of heads: whole sequences of some heads, from some tokens of all heads.

Where the tokens of a row lie with several processes (``door/spread.py``), what mixes them needs whole sequences, and
no head needs another. So each process takes a share of the heads, in equal parts or nearly so (30 over 4 as 8, 8, 7,
7), gets every token of these, and gives back to each process its tokens of the result. Layouts, forks and kernels are
those of one process.

Its own weights of a head (a convolution's) have a gradient in the process that computes the head, and zeros elsewhere;
so the sum over the processes is the gradient of one, as it is for what each computes of its own tokens. (All-to-all
from tokens to heads: DeepSpeed-Ulysses, arXiv:2309.14509.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.door.spread import cut


class _AllToAll(torch.autograd.Function):
    """Numbers [sum(send)] to [sum(receive)]: to each process and from each process so many of them, in their order."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, send: list[int], receive: list[int], group: Any) -> torch.Tensor:
        ctx.send, ctx.receive, ctx.group = send, receive, group
        out = x.new_empty(sum(receive))
        dist.all_to_all_single(out, x.contiguous(), receive, send, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return _AllToAll.apply(grad, ctx.receive, ctx.send, ctx.group), None, None, None


class Heads:
    """``units`` of heads that stay together, of which this process computes its share: all of them where
    it has all tokens.

    A unit is a key head, or a group, with the value or query heads that it serves, or some of them.
    """

    repeats = 1
    """units of one key head, which is handed to each of them"""

    def __init__(self, layout: SequenceLayout, units: int) -> None:
        self.spread = layout.spread
        self.shares = (units,) if self.spread is None else cut(units, len(self.spread.tokens))
        rank = 0 if self.spread is None else self.spread.rank
        self.units, self.count = units, self.shares[rank]
        self.first = sum(self.shares[:rank])
        if not min(self.shares):
            raise ValueError(f"{units} heads cannot be shared by {len(self.shares)} processes; each needs one at least")

    @classmethod
    def of_groups(cls, layout: SequenceLayout, heads: int, groups: int) -> Heads:
        """Of key heads or groups that serve ``heads // groups`` heads each. Where there are fewer of them than
        processes, each is handed to several."""
        size = 1 if layout.spread is None else len(layout.spread.tokens)
        parts = range(1, heads // groups + 1)
        repeats = next((r for r in parts if groups * r >= size and not heads % (groups * r)), 1)
        made = cls(layout, groups * repeats)
        made.repeats = repeats
        return made

    def each(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """What is by groups, groups * c along ``dim``, for each unit: units * c."""
        if self.repeats == 1:
            return x
        return (
            x.unflatten(dim, (self.units // self.repeats, -1))
            .repeat_interleave(self.repeats, dim)
            .flatten(dim, dim + 1)
        )

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """Own tokens of all heads, [n, units * c, ...], to all tokens of own heads, [N, count * c, ...]."""
        if self.spread is None:
            return x
        tokens, rank = self.spread.tokens, self.spread.rank
        each = x.shape[1:].numel() // self.units
        parts = x.unflatten(1, (self.units, -1)).split(self.shares, dim=1)
        out = _AllToAll.apply(
            torch.cat([part.reshape(-1) for part in parts]),
            [tokens[rank] * share * each for share in self.shares],
            [n * self.count * each for n in tokens],
            self.spread.group,
        )
        return out.view(sum(tokens), self.count * x.shape[1] // self.units, *x.shape[2:])

    def gather_joined(self, x: torch.Tensor, widths: Sequence[int], grouped: Collection[int] = ()) -> torch.Tensor:
        """The same of several tensors side by side, [n, sum(widths)], each of them all heads, or all groups where its
        number is in ``grouped``."""
        if self.spread is None:
            return x
        return torch.cat([self.gather(part) for part in self._parts(x, widths, grouped, 1)], dim=1)

    def give_back(self, x: torch.Tensor) -> torch.Tensor:
        """The reverse of ``gather``: [N, count * c, ...] to [n, units * c, ...]."""
        if self.spread is None:
            return x
        tokens, rank = self.spread.tokens, self.spread.rank
        n, each = tokens[rank], x.shape[1:].numel() // self.count
        sizes = [n * share * each for share in self.shares]
        out = _AllToAll.apply(x.reshape(-1), [m * self.count * each for m in tokens], sizes, self.spread.group)
        wide = x.shape[1] // self.count
        parts = [part.view(n, share * wide, *x.shape[2:]) for part, share in zip(out.split(sizes), self.shares)]
        return torch.cat(parts, dim=1)

    def own(self, weight: torch.Tensor) -> torch.Tensor:
        """Own heads' part of a weight, [units * c, ...] to [count * c, ...]."""
        c = weight.shape[0] // self.units
        return weight if self.spread is None else weight[self.first * c : (self.first + self.count) * c]

    def own_joined(self, weight: torch.Tensor, widths: Sequence[int], grouped: Collection[int] = ()) -> torch.Tensor:
        """The same of several weights one below the other, [sum(widths), ...]."""
        if self.spread is None:
            return weight
        return torch.cat([self.own(part) for part in self._parts(weight, widths, grouped, 0)])

    def _parts(
        self, x: torch.Tensor, widths: Sequence[int], grouped: Collection[int], dim: int
    ) -> Iterator[torch.Tensor]:
        for number, part in enumerate(x.split(list(widths), dim=dim)):
            yield self.each(part, dim) if number in grouped else part


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: SequenceLayout, attention: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """``attention(q, k, v)`` of whole sequences, for q [n, H, D], k [n, HKV, D] and v [n, HKV, DV].
    Returns [n, H, DV]."""
    heads = Heads.of_groups(layout, q.shape[1], k.shape[1])
    return heads.give_back(attention(*map(heads.gather, (q, heads.each(k, 1), heads.each(v, 1)))))
