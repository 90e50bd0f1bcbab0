"""Where each document lies in a flat run of tokens, and what it continues from: all that a layer knows of a batch.

A batch is laid end to end once, at the model's door. ``open_door`` reads the form the trainer gave (padded rows,
plain rows, packed rows) into a ``Door``; ``Door.flatten`` drops the padding and ``Door.unflatten`` puts hidden states
back in that form. Between the two there are no rows, so nothing can leak from one document into the next.

Dimensions: ``B`` rows, ``T`` columns of the batch, ``N`` flat tokens, ``S`` segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch


@dataclass(frozen=True, eq=False)
class Level:
    """The segments of one depth in the forest, next to each other, so that one kernel call handles them all.

    lengths     of each segment, on the host
    cu_seqlens  int32 [s+1], from the level's first token
    parents     int64 [s], places in the level before; None at the roots
    """

    lengths: tuple[int, ...]
    cu_seqlens: torch.Tensor
    parents: torch.Tensor | None


class KeyRuns(NamedTuple):
    """What each segment attends to, laid end to end: the tokens of its history and its own.

    tokens      int64, which of the layout's tokens these are; None where each segment has its own alone
    cu_seqlens  int32 [S+1]
    max_seqlen  on the host
    """

    tokens: torch.Tensor | None
    cu_seqlens: torch.Tensor
    max_seqlen: int


@dataclass(frozen=True, eq=False)
class SequenceLayout:
    """Segments laid end to end: segment ``s`` is tokens ``cu_seqlens[s] : cu_seqlens[s + 1]``.

    A segment with a parent continues it: it takes over the parent's recurrent state, convolution tail, keys and
    values. Segments are ordered by depth. A segment may be empty.

    cu_seqlens  int32 [S+1]
    parents     int64 [S], the earlier segment continued from, or -1 for a fresh start
    positions   int64 [N], place of a token in its own history, the parents' tokens counted
    max_seqlen  tokens in the longest segment; this and all below is on the host, so no layer waits for the device
    lengths     of each segment
    levels      the same segments by depth
    histories   for each segment the segments it continues, oldest first, and itself
    """

    cu_seqlens: torch.Tensor
    parents: torch.Tensor
    positions: torch.Tensor
    max_seqlen: int
    lengths: tuple[int, ...]
    levels: tuple[Level, ...]
    histories: tuple[tuple[int, ...], ...]

    @cached_property
    def keys(self) -> KeyRuns:
        """Made at first use, for all layers."""
        if len(self.levels) == 1:
            return KeyRuns(None, self.cu_seqlens, self.max_seqlen)
        starts = [0, *accumulate(self.lengths)]
        tokens = torch.cat([torch.arange(starts[a], starts[a + 1]) for history in self.histories for a in history])
        lengths = [sum(self.lengths[a] for a in history) for history in self.histories]
        device = self.cu_seqlens.device
        return KeyRuns(
            tokens.to(device, non_blocking=True), _offsets(lengths).to(device, non_blocking=True), max(lengths)
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SequenceLayout:
        """The same layout for another device; accelerate moves keyword arguments between devices with this."""
        if self.cu_seqlens.device == torch.device(device):
            return self

        def move(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, non_blocking=non_blocking)

        levels = tuple(
            Level(level.lengths, move(level.cu_seqlens), None if level.parents is None else move(level.parents))
            for level in self.levels
        )
        return SequenceLayout(
            move(self.cu_seqlens),
            move(self.parents),
            move(self.positions),
            self.max_seqlen,
            self.lengths,
            levels,
            self.histories,
        )


def _offsets(lengths: Sequence[int]) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)


def build_layout(
    lengths: Sequence[int], parents: Sequence[int] | None = None, device: torch.device | str = "cpu"
) -> SequenceLayout:
    """Lay out segments of these lengths, which are already ordered by depth (``tree_layout`` orders them).

    Raises ValueError for a negative length, a parent that does not come earlier, or depths out of order.
    """
    lengths = tuple(int(n) for n in lengths)
    parents = (-1,) * len(lengths) if parents is None else tuple(int(p) for p in parents)
    if len(parents) != len(lengths):
        raise ValueError(f"{len(lengths)} segment lengths but {len(parents)} parents")
    if lengths and min(lengths) < 0:
        raise ValueError(f"segment {lengths.index(min(lengths))} has length {min(lengths)}; lengths are 0 or more")
    histories: list[tuple[int, ...]] = []
    for s, parent in enumerate(parents):
        if not -1 <= parent < s:
            raise ValueError(f"segment {s} names parent {parent}; a parent is an earlier segment, or -1")
        histories.append((s,) if parent < 0 else (*histories[parent], s))
        if s and len(histories[s]) < len(histories[s - 1]):
            raise ValueError(f"segment {s} is less deep than the one before it; order them with tree_layout")

    levels = []
    place = [0] * len(lengths)
    for depth in range(1, 1 + max((len(h) for h in histories), default=1)):
        members = [s for s, h in enumerate(histories) if len(h) == depth]
        for i, s in enumerate(members):
            place[s] = i
        level_lengths = tuple(lengths[s] for s in members)
        above = None if depth == 1 else torch.tensor([place[parents[s]] for s in members])
        levels.append(Level(level_lengths, _offsets(level_lengths), above))

    cu_seqlens = levels[0].cu_seqlens if len(levels) == 1 else _offsets(lengths)
    origin = torch.tensor([sum(lengths[a] for a in h[:-1]) for h in histories], dtype=torch.int64)
    shift = torch.repeat_interleave(origin - cu_seqlens[:-1], torch.tensor(lengths, dtype=torch.int64))
    positions = torch.arange(len(shift)) + shift
    layout = SequenceLayout(
        cu_seqlens,
        torch.tensor(parents, dtype=torch.int64),
        positions,
        max(lengths, default=0),
        lengths,
        tuple(levels),
        tuple(histories),
    )
    return layout.to(device, non_blocking=True)


def tree_layout(
    lengths: Sequence[int], parents: Sequence[int], device: torch.device | str = "cpu"
) -> tuple[SequenceLayout, torch.Tensor]:
    """Lay out a forest whose segments come in any order.

    Returns the layout, by depth, and ``order`` int64 [N]: ``tokens[order]`` are the tokens in the layout's order, for
    tokens that lie in the order of ``lengths``. Raises ValueError for a parent that does not exist or for a circle.
    """
    depths: list[int | None] = [None] * len(parents)
    for start in range(len(parents)):
        path, s = [], start
        while s >= 0 and depths[s] is None:
            if not -1 <= parents[s] < len(parents):
                raise ValueError(f"segment {s} names parent {parents[s]} of {len(parents)} segments")
            if s in path:
                raise ValueError(f"segment {s} is its own ancestor")
            path.append(s)
            s = parents[s]
        base = -1 if s < 0 else depths[s]
        assert base is not None
        for distance, member in enumerate(reversed(path), start=1):
            depths[member] = base + distance
    by_depth = sorted(range(len(parents)), key=lambda s: depths[s] or 0)
    place = {s: i for i, s in enumerate(by_depth)}
    place[-1] = -1
    starts = [0, *accumulate(lengths)]
    order = [t for s in by_depth for t in range(starts[s], starts[s + 1])]
    layout = build_layout([lengths[s] for s in by_depth], [place[parents[s]] for s in by_depth], device)
    return layout, torch.tensor(order, dtype=torch.int64, device=device)


@dataclass(frozen=True, eq=False)
class Door:
    """A batch's way in and out.

    layout       the segments of the real tokens
    shape        (B, T) of the batch
    index        int64 [N], the place of each flat token among the B * T; None where they are all real and in order
    one_per_row  whether each row is one segment (possibly empty), as a cache needs
    """

    layout: SequenceLayout
    shape: tuple[int, int]
    index: torch.Tensor | None
    one_per_row: bool

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] -> [N, ...]."""
        x = x.flatten(0, 1)
        return x if self.index is None else x.index_select(0, self.index)

    def unflatten(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [B, T, ...], zeros at the padding."""
        if self.index is not None:
            rows = x.new_zeros(self.shape[0] * self.shape[1], *x.shape[1:])
            x = rows.index_copy(0, self.index, x)
        return x.unflatten(0, self.shape)


def open_door(
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
    *,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    seq_idx: torch.Tensor | None = None,
) -> Door:
    """Read a batch of ``shape`` (B, T) into a door.

    attention_mask  [B, T] of 0 and 1, padding on the left, the right or both
    position_ids    [B, T] or [1, T]; a step other than + 1 begins a document
    cu_seq_lens_*   [S + 1] offsets into the B * T tokens, as TRL's and transformers' collators make them
    seq_idx         [B, T]; a change begins a document

    Raises ValueError where these contradict each other, or for a mask that is not 2-D or has a hole in a row.
    """
    B, T = shape
    real = None if attention_mask is None else _real_tokens(attention_mask, shape)
    cuts: dict[str, torch.Tensor] = {}
    if position_ids is not None:
        steps = position_ids.to("cpu").expand(B, T).diff(dim=1)
        cuts["position_ids"] = steps != 1
    for name, offsets in (("cu_seq_lens_q", cu_seq_lens_q), ("cu_seq_lens_k", cu_seq_lens_k)):
        if offsets is not None:
            cuts[name] = _cuts_from_offsets(name, offsets, shape)
    if seq_idx is not None:
        cuts["seq_idx"] = seq_idx.to("cpu").expand(B, T).diff(dim=1) != 0
    if real is not None:
        inside = real[:, 1:] & real[:, :-1]
        cuts = {name: cut & inside for name, cut in cuts.items()}
    _check_agreement(cuts)
    cut = next(iter(cuts.values()), None)
    if real is not None and bool(real.all()):
        real = None

    index = None if real is None else real.flatten().nonzero().squeeze(1)
    one_per_row = cut is None or not bool(cut.any())
    if one_per_row:
        lengths = [T] * B if real is None else real.sum(1).tolist()
    else:
        assert cut is not None
        starts = torch.nn.functional.pad(cut, (1, 0), value=True)
        if real is not None:
            starts[:, 1:] |= real[:, 1:] & ~real[:, :-1]
            starts = starts & real
        flat = starts.flatten() if index is None else starts.flatten()[index]
        ends = torch.tensor([len(flat)])
        lengths = torch.cat([flat.nonzero().squeeze(1), ends]).diff().tolist()
    layout = build_layout(lengths, device=device)
    return Door(layout, shape, None if index is None else index.to(device, non_blocking=True), one_per_row)


def _real_tokens(attention_mask: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """The mask as bool [B, T] on the host."""
    if not isinstance(attention_mask, torch.Tensor) or tuple(attention_mask.shape) != tuple(shape):
        got = tuple(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask).__name__
        raise ValueError(f"attention_mask is {got}; pass the 2-D mask of the tokens, {tuple(shape)}")
    mask = attention_mask.to("cpu")
    real = mask != 0
    if mask.dtype != torch.bool and bool((mask[real] != 1).any()):
        raise ValueError("attention_mask holds values other than 0 and 1; pass documents' bounds as position_ids")
    entries = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(1)
    if bool((entries > 1).any()):
        row = int((entries > 1).nonzero()[0])
        raise ValueError(f"attention_mask has a hole in row {row}: padding may only stand before or after the tokens")
    return real


def _cuts_from_offsets(name: str, offsets: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """bool [B, T - 1]: where a document begins inside a row."""
    B, T = shape
    bounds = offsets.to("cpu").flatten().long()
    if bounds.numel() < 1 or int(bounds[0]) != 0 or int(bounds[-1]) != B * T or bool((bounds.diff() < 0).any()):
        raise ValueError(f"{name} must rise from 0 to the {B * T} tokens of the batch; got {_shortened(bounds)}")
    starts = torch.zeros(B * T + 1, dtype=torch.bool)
    starts[bounds] = True
    starts = starts[:-1].view(B, T)
    if not bool(starts[:, 0].all()):
        row = int((~starts[:, 0]).nonzero()[0])
        raise ValueError(f"{name} lets a document run on from row {row - 1} into row {row}")
    return starts[:, 1:]


def _check_agreement(cuts: dict[str, torch.Tensor]) -> None:
    names = list(cuts)
    for name in names[1:]:
        differ = cuts[name] != cuts[names[0]]
        if bool(differ.any()):
            row, column = differ.nonzero()[0].tolist()
            where, other = (name, names[0]) if cuts[name][row, column] else (names[0], name)
            raise ValueError(
                f"{where} begins a document at row {row}, token {column + 1}, and {other} does not; "
                "pass boundaries that agree"
            )


def _shortened(bounds: torch.Tensor) -> str:
    values = bounds.tolist()
    return str(values) if len(values) <= 8 else f"[{values[0]}, {values[1]}, ..., {values[-1]}]"
