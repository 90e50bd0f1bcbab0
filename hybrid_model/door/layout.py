"""The layout of a flat batch: where segments begin and what they continue.

A batch is laid end to end once, at the model's door. ``open_door`` reads the form the trainer gave (padded rows,
plain rows, packed rows) into a ``Door``; ``Door.flatten`` drops the padding and ``Door.unflatten`` puts hidden states
back in that form. Between the two there are no rows, so nothing can leak from one document into the next.

Dimensions: ``B`` rows, ``T`` columns of the batch, ``N`` flat tokens, ``S`` segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch

from hybrid_ft.hybrid_model.door.spread import Spread


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
    ancestors   for each segment the segments it continues, oldest first, and itself
    form        leading sizes of the hidden states between the layers; None for (1, N)
    places      int64 [N], the place of each token in that form; None where they are all real and in order
    spread      where the tokens lie; None with this process, and otherwise hidden states are of its own tokens
    """

    cu_seqlens: torch.Tensor
    parents: torch.Tensor
    positions: torch.Tensor
    max_seqlen: int
    lengths: tuple[int, ...]
    levels: tuple[Level, ...]
    ancestors: tuple[tuple[int, ...], ...]
    form: tuple[int, int] | None = None
    places: torch.Tensor | None = None
    spread: Spread | None = None

    @property
    def own_positions(self) -> torch.Tensor:
        """Of the tokens that lie here, [n]."""
        return self.positions if self.spread is None else self.positions[self.spread.own]

    def flat(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states in their form, [B, T, ...] or [1, N, ...], to [N, ...]."""
        x = x.flatten(0, 1)
        return x if self.places is None else x.index_select(0, self.places)

    def formed(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] to the form of the hidden states, zeros at the padding."""
        if self.form is None:
            return x.unsqueeze(0)
        return _placed(x, self.form, self.places)

    @cached_property
    def keys(self) -> KeyRuns:
        """Made at first use, for all layers."""
        if len(self.levels) == 1:
            return KeyRuns(None, self.cu_seqlens, self.max_seqlen)
        starts = [0, *accumulate(self.lengths)]
        tokens = torch.cat([torch.arange(starts[a], starts[a + 1]) for history in self.ancestors for a in history])
        lengths = [sum(self.lengths[a] for a in history) for history in self.ancestors]
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
        places = None if self.places is None else move(self.places)
        cu_seqlens, parents, positions = move(self.cu_seqlens), move(self.parents), move(self.positions)
        return replace(self, cu_seqlens=cu_seqlens, parents=parents, positions=positions, levels=levels, places=places)


def _placed(x: torch.Tensor, shape: tuple[int, int], places: torch.Tensor | None) -> torch.Tensor:
    """[N, ...] -> [B, T, ...], zeros where no place is named."""
    if places is not None:
        x = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy(0, places, x)
    return x.unflatten(0, shape)


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
    ancestors: list[tuple[int, ...]] = []
    for s, parent in enumerate(parents):
        if not -1 <= parent < s:
            raise ValueError(f"segment {s} names parent {parent}; a parent is an earlier segment, or -1")
        ancestors.append((s,) if parent < 0 else (*ancestors[parent], s))
        if s and len(ancestors[s]) < len(ancestors[s - 1]):
            raise ValueError(f"segment {s} is less deep than the one before it; order them with tree_layout")

    levels = []
    place = [0] * len(lengths)
    for depth in range(1, 1 + max((len(h) for h in ancestors), default=1)):
        members = [s for s, h in enumerate(ancestors) if len(h) == depth]
        for i, s in enumerate(members):
            place[s] = i
        level_lengths = tuple(lengths[s] for s in members)
        above = None if depth == 1 else torch.tensor([place[parents[s]] for s in members])
        levels.append(Level(level_lengths, _offsets(level_lengths), above))

    cu_seqlens = levels[0].cu_seqlens if len(levels) == 1 else _offsets(lengths)
    origin = torch.tensor([sum(lengths[a] for a in h[:-1]) for h in ancestors], dtype=torch.int64)
    shift = torch.repeat_interleave(origin - cu_seqlens[:-1], torch.tensor(lengths, dtype=torch.int64))
    positions = torch.arange(len(shift)) + shift
    layout = SequenceLayout(
        cu_seqlens,
        torch.tensor(parents, dtype=torch.int64),
        positions,
        max(lengths, default=0),
        lengths,
        tuple(levels),
        tuple(ancestors),
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Door:
        index = None if self.index is None else self.index.to(device, non_blocking=non_blocking)
        return replace(self, layout=self.layout.to(device, non_blocking), index=index)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, ...] -> [N, ...]."""
        x = x.flatten(0, 1)
        return x if self.index is None else x.index_select(0, self.index)

    def unflatten(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [B, T, ...], zeros at the padding."""
        return _placed(x, self.shape, self.index)


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

    A hole in a row's mask is left out: what follows continues what came before, unless a bound says otherwise. Raises
    ValueError where the bounds contradict each other, and for a mask of another shape or with values besides 0 and 1.
    """
    B, T = shape
    real = None if attention_mask is None else _real_tokens(attention_mask, shape)
    if real is not None and bool(real.all()):
        real = None
    index = None if real is None else real.flatten().nonzero().squeeze(1)
    rows = torch.arange(B).repeat_interleave(T)
    if index is not None:
        rows = rows[index]

    def steps(x: torch.Tensor) -> torch.Tensor:
        """[B, T] to the differences between real tokens next to each other, [N - 1]."""
        x = x.to("cpu").expand(B, T).flatten()
        return (x if index is None else x[index]).diff()

    inside = rows.diff() == 0
    cuts: dict[str, torch.Tensor] = {}
    if position_ids is not None:
        # positions may count the places that a hole leaves out, or not
        step, gap = steps(position_ids), steps(torch.arange(B * T).view(B, T))
        cuts["position_ids"] = (step != 1) & (step != gap) & inside
    for name, offsets in (("cu_seq_lens_q", cu_seq_lens_q), ("cu_seq_lens_k", cu_seq_lens_k)):
        if offsets is not None:
            cuts[name] = (steps(_document_numbers(name, offsets, shape)) != 0) & inside
    if seq_idx is not None:
        cuts["seq_idx"] = (steps(seq_idx) != 0) & inside
    _check_agreement(cuts, torch.arange(B * T) if index is None else index, T)
    cut = next(iter(cuts.values()), None)
    one_per_row = cut is None or not bool(cut.any())
    if one_per_row:
        lengths = [T] * B if real is None else real.sum(1).tolist()
    else:
        assert cut is not None
        starts = torch.nn.functional.pad(cut | ~inside, (1, 0), value=True)
        lengths = torch.cat([starts.nonzero().squeeze(1), torch.tensor([len(starts)])]).diff().tolist()
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
    return real


def _document_numbers(name: str, offsets: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """int64 [B, T]: how many documents have begun before a token or with it."""
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
    return starts.flatten().cumsum(0).view(B, T)


def _check_agreement(cuts: dict[str, torch.Tensor], places: torch.Tensor, columns: int) -> None:
    """The bounds, bool [N - 1] each, between the tokens at ``places``."""
    names = list(cuts)
    for name in names[1:]:
        differ = cuts[name] != cuts[names[0]]
        if bool(differ.any()):
            at = int(differ.nonzero()[0])
            row, column = divmod(int(places[at + 1]), columns)
            where, other = (name, names[0]) if cuts[name][at] else (names[0], name)
            raise ValueError(
                f"{where} begins a document at row {row}, token {column}, and {other} does not; "
                "pass boundaries that agree"
            )


def _shortened(bounds: torch.Tensor) -> str:
    values = bounds.tolist()
    return str(values) if len(values) <= 8 else f"[{values[0]}, {values[1]}, ..., {values[-1]}]"
