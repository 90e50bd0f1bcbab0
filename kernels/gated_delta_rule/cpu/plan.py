"""How packed segments are cut into chunks, and the chunks' order.

Segments are sorted, longest first, and dealt into groups. A group is scanned in lock step: step i does chunk i of
every segment that has one, and because of the sorting those are the group's first ``active`` segments. Chunks are
numbered in that order (group, step, segment), so that a step, and any run of steps, is one slice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Step:
    """Chunk number i of the first ``active`` segments of a group; ``chunk`` is the first of those chunks."""

    chunk: int
    active: int


@dataclass(frozen=True)
class Group:
    """Segments ``first`` to ``first + segments`` of ``ChunkPlan.order``, and their steps in order."""

    first: int
    segments: int
    steps: tuple[Step, ...]

    def tiles(self, chunks_per_tile: int) -> Iterator[tuple[Step, ...]]:
        """The steps in runs of at most ``chunks_per_tile`` chunks, at least one step each."""
        run: list[Step] = []
        for step in self.steps:
            if run and step.chunk + step.active - run[0].chunk > chunks_per_tile:
                yield tuple(run)
                run = []
            run.append(step)
        yield tuple(run)


@dataclass(frozen=True, eq=False)
class ChunkPlan:
    """Hashed by identity: what follows from a plan is kept beside it.

    order   [S] segments, longest first
    tokens  [chunks, chunk_size] the token of every row; a row past its segment's end repeats the segment's last token
    pad     [chunks, chunk_size] whether a row is past its segment's end; None where no row is
    starts, padded   of every chunk, the first token and whether it has such rows; on the host
    """

    chunk_size: int
    order: Tensor
    tokens: Tensor
    pad: Tensor | None
    groups: tuple[Group, ...]
    starts: list[int]
    padded: list[bool]

    def has_pad(self, chunks: slice) -> bool:
        return any(self.padded[chunks])

    def regular_grid(self, chunks: slice, segments: int) -> tuple[int, int, int, int, int] | None:
        """(first token, steps, tokens from step to step, segments, tokens from segment to segment), or None.

        For full chunks, ``segments`` to a step, that are evenly spaced both ways: what dense batches are made of.
        """
        if self.has_pad(chunks) or (chunks.stop - chunks.start) % segments:
            return None
        starts = self.starts[chunks]
        steps = len(starts) // segments
        down = starts[segments] - starts[0] if steps > 1 else 0
        across = starts[1] - starts[0] if segments > 1 else 0
        even = all(token == starts[0] + i // segments * down + i % segments * across for i, token in enumerate(starts))
        # a longer segment may lie behind a shorter one; a view cannot run backwards
        return (starts[0], steps, down, segments, across) if even and min(down, across) >= 0 else None


@lru_cache(maxsize=16)
def plan_chunks(edges: tuple[int, ...], chunk_size: int, segments_per_group: int, device: torch.device) -> ChunkPlan:
    """Cuts segments into chunks; segment s is tokens edges[s] : edges[s+1]. Empty segments have no chunk.

    Kept for the next calls, because all layers of a model see the same segments.
    """
    cu_seqlens = torch.tensor(edges)
    starts, ends = cu_seqlens[:-1], cu_seqlens[1:]
    counts, order = ((ends - starts + chunk_size - 1) // chunk_size).sort(descending=True, stable=True)
    starts, ends = starts[order], ends[order]

    rank = torch.repeat_interleave(counts)
    step = torch.arange(len(rank)) - (counts.cumsum(0) - counts)[rank]
    group = rank // segments_per_group
    by_step = (group * (len(rank) + 1) + step).sort(stable=True).indices
    rank, step, group = rank[by_step], step[by_step], group[by_step]

    rows = starts[rank, None] + step[:, None] * chunk_size + torch.arange(chunk_size)
    last = ends[rank, None] - 1
    tokens, pad = torch.minimum(rows, last), rows > last
    return ChunkPlan(
        chunk_size,
        order.to(device),
        tokens.to(device),
        pad.to(device) if bool(pad.any()) else None,
        _groups(group, step, segments_per_group, len(order)),
        starts=tokens[:, 0].tolist(),
        padded=pad[:, -1].tolist(),
    )


def _groups(group: Tensor, step: Tensor, segments_per_group: int, segments: int) -> tuple[Group, ...]:
    pairs, active = torch.unique_consecutive(torch.stack([group, step], 1), dim=0, return_counts=True)
    steps: dict[int, list[Step]] = {}
    chunk = 0
    for number, count in zip(pairs[:, 0].tolist(), active.tolist()):
        steps.setdefault(number, []).append(Step(chunk, count))
        chunk += count
    return tuple(
        Group(number * segments_per_group, min(segments_per_group, segments - number * segments_per_group), tuple(run))
        for number, run in steps.items()
    )
