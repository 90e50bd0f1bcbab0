"""Data movement of the chunked path: chunks, gates, scratch memory.

A *row* is one chunk of one value head. Rows are numbered run of heads by run of heads, in a run chunk by chunk, in a
chunk head by head; a block (a run of heads x a group of segments), a tile of it and a step are then slices of rows.
Views are made once per block or per kind of tile, never inside the loop over tiles: a view costs as much as a product
of small matrices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.cpu.plan import ChunkPlan, Group
from hybrid_ft.kernels.gated_delta_rule.reference import NORM_EPS, compute_dtype


@dataclass(frozen=True)
class Settings:
    """heads: value heads in a run; rows: most rows in a tile (a step of more rows is a tile by itself); correct:
    whether the state's answer to a key is taken off what is written."""

    scale: float
    use_qk_l2norm: bool
    heads: int
    rows: int
    correct: bool = True


class Kind(NamedTuple):
    """What tiles have in common that can share scratch: the rows of each step, and whether their chunks are a grid."""

    steps: tuple[int, ...]
    regular: bool
    heads: int

    def spread(self, x: Tensor, repeat: int = 1) -> Tensor:
        """``x`` [rows, C, D] in the shape of a place (see ``TokenRows``) that holds a row ``repeat`` times."""
        if not self.regular:
            return x
        segments = self.steps[0] // self.heads
        return x.view(len(self.steps), segments, self.heads // repeat, repeat, *x.shape[1:])


@dataclass(frozen=True)
class Tile:
    """A run of steps of one block; ``grid`` is the plan's ``regular_grid`` of them."""

    chunks: slice
    kind: Kind
    padded: bool
    grid: tuple[int, int, int, int, int] | None


class Block:
    """A run of value heads x a group of segments: the lanes that are scanned together."""

    def __init__(self, group: Group, first_head: int, heads: int, most_rows: int, plan: ChunkPlan) -> None:
        self.first_head, self.heads = first_head, heads
        self.chunks = slice(group.steps[0].chunk, group.steps[-1].chunk + group.steps[-1].active)
        first = first_head * len(plan.tokens)
        self.rows = slice(first + self.chunks.start * heads, first + self.chunks.stop * heads)
        self.tiles: list[Tile] = []
        for steps in group.tiles(max(1, most_rows // heads)):
            chunks = slice(steps[0].chunk, steps[-1].chunk + steps[-1].active)
            grid = plan.regular_grid(chunks, steps[0].active)
            kind = Kind(tuple(step.active * heads for step in steps), grid is not None, heads)
            self.tiles.append(Tile(chunks, kind, plan.has_pad(chunks), grid))
        segments = plan.order[group.first : group.first + group.segments]
        in_order = bool((segments.diff() == 1).all())
        first_segment = int(segments[0])
        # An index of the block's lanes in a [S, HV, K, V] tensor, a slice where it can be: that is a view.
        self.lanes = (
            slice(first_segment, first_segment + group.segments) if in_order else segments,
            slice(first_head, first_head + heads),
        )

    @cached_property
    def tile_sizes(self) -> list[int]:
        return [sum(tile.kind.steps) for tile in self.tiles]

    def by_tile(self, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """Splits the block's rows, dimension ``dim`` of ``x``, into one view per tile."""
        return x.split_with_sizes(self.tile_sizes, dim)

    @cached_property
    def chunks_of_tiles(self) -> list[int]:
        return [size // self.heads for size in self.tile_sizes]

    @cached_property
    def step_sizes(self) -> list[int]:
        return [size for tile in self.tiles for size in tile.kind.steps]

    def by_step(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """Splits the block's rows ``x`` into one view per step, in a tuple per tile."""
        views = iter(x.split_with_sizes(self.step_sizes))
        return [tuple(next(views) for _ in tile.kind.steps) for tile in self.tiles]


@lru_cache(maxsize=16)
def cut_blocks(plan: ChunkPlan, value_heads: int, heads: int, most_rows: int) -> list[Block]:
    """``heads`` value heads to a block, at most ``most_rows`` rows to a tile. Kept for the next calls, as plans are."""
    runs = range(0, value_heads, heads)
    return [Block(group, head, heads, most_rows, plan) for head in runs for group in plan.groups]


class TokenRows:
    """The (token, head) rows of a [B, T, H, D] tensor, read or written tile by tile.

    A *place* says where a tile's rows are: a strided view of full, evenly spaced chunks, or else the rows' numbers.
    Copying through the view is two (reading) to three (writing) times as fast as by number.
    """

    def __init__(self, rows: Tensor, per_token: int, plan: ChunkPlan, group: int, spare: int | None) -> None:
        self.rows, self.per_token, self.plan, self.group, self.spare = rows, per_token, plan, group, spare
        self.repeat = group if spare is None else 1

    @classmethod
    def of(cls, x: Tensor, plan: ChunkPlan, group: int = 1) -> "TokenRows":
        """To read ``x``; with H < HV, each of its heads once for every value head of the ``group`` it serves.

        ``x`` is read in place where a row is contiguous and every row starts at a multiple of D elements, which holds
        for q, k and v split from one projection; else it is copied first.
        """
        batch, length, heads, dim = x.shape
        in_place = x.stride(3) == 1 and (heads == 1 or x.stride(2) == dim) and x.stride(1) % dim == 0
        if not (in_place and x.stride(1) and (batch == 1 or x.stride(0) == length * x.stride(1))):
            x = x.contiguous()
        per_token = x.stride(1) // dim
        rows = x.as_strided(((batch * length - 1) * per_token + heads, dim), (dim, 1))
        return cls(rows, per_token, plan, group, spare=None)

    @classmethod
    def like(cls, x: Tensor, plan: ChunkPlan, group: int = 1) -> "TokenRows":
        """To write a new tensor of x's shape and dtype, adding up a group's rows. One spare row takes the padding's."""
        spare = x.shape[:3].numel()
        return cls(x.new_empty(spare + 1, x.shape[3]), x.shape[2], plan, group, spare)

    def places(self, block: Block) -> list[Tensor]:
        """For each tile of ``block``."""
        C, dim = self.plan.chunk_size, self.rows.shape[1]
        first, count = block.first_head // self.group, block.heads // self.group
        numbers: list[Tensor] = []
        if not all(tile.grid for tile in block.tiles):
            numbers += self._numbers(block, first, count).split_with_sizes(block.chunks_of_tiles)
        places: list[Tensor] = []
        for i, tile in enumerate(block.tiles):
            if tile.grid is None:
                places.append(numbers[i].view(-1))
                continue
            start, steps, step_gap, segments, segment_gap = tile.grid
            token = self.per_token * dim
            sizes = (steps, segments, count, self.repeat, C, dim)
            strides = (step_gap * token, segment_gap * token, dim, 0, token, 1)
            offset = self.rows.storage_offset() + start * token + first * dim
            places.append(self.rows.as_strided(sizes, strides, offset))
        return places

    def _numbers(self, block: Block, first: int, count: int) -> Tensor:
        """[chunks of the block, heads, C]"""
        heads = torch.arange(first, first + count, device=self.rows.device).repeat_interleave(self.repeat)
        numbers = self.plan.tokens[block.chunks, None, :] * self.per_token + heads[:, None]
        if self.plan.pad is not None and self.spare is not None:
            numbers.masked_fill_(self.plan.pad[block.chunks, None, :], self.spare)
        return numbers

    def read(self, place: Tensor, out: Tensor, factor: Tensor | None = None) -> None:
        """Into ``out``, of any dtype; times ``factor``. Both are spread as the place is."""
        if place.ndim > 1:
            if factor is None:
                out.copy_(place)
            else:
                torch.mul(place, factor, out=out)
            return
        if self.rows.dtype == out.dtype:
            torch.index_select(self.rows, 0, place, out=out.view(-1, out.shape[-1]))
        else:
            out.view(-1, out.shape[-1]).copy_(self.rows.index_select(0, place))
        if factor is not None:
            out.mul_(factor)

    def write(self, place: Tensor, x: Tensor, factor: Tensor | None = None) -> None:
        """From ``x``, of any dtype; times ``factor``, for which ``x`` may be overwritten. Both are spread as the place
        of what was read, a group's rows apart."""
        if factor is not None:
            if place.ndim > 1 and self.group == 1:
                torch.mul(x, factor, out=place)
                return
            x.mul_(factor)
        if place.ndim > 1:
            place.copy_(x.sum(3, keepdim=True) if self.group > 1 else x)
            return
        if self.group > 1:
            x = x.unflatten(0, (-1, self.group)).sum(1)
        self.rows.index_copy_(0, place, x.view(-1, x.shape[-1]).to(self.rows.dtype))


class Inputs(NamedTuple):
    """q, k and v as the chunks read them."""

    q: TokenRows
    k: TokenRows
    v: TokenRows


class Kept(NamedTuple):
    """What forward keeps for backward, by row: D and T [rows, C, C], S at the chunk's start [rows, K, V],
    Y [rows, C, V]."""

    decay: Tensor
    T: Tensor
    states: Tensor
    y: Tensor

    def by_tile(self, block: Block) -> list["Kept"]:
        return [Kept(*tile) for tile in zip(*(block.by_tile(x[block.rows]) for x in self))]


def decay_(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """exp(x) in place, at most 1, and 0 instead of what is subnormal in ``dtype``, by default x's: such numbers cost 40
    ns each on a CPU, exp(-inf) 2 ns."""
    lowest = -700.0 if (dtype or x.dtype) == torch.float64 else -87.0
    return torch.threshold_(x.clamp_(lowest, 0).exp_(), 1.001 * math.exp(lowest), 0.0)


class TileGates(NamedTuple):
    """Gates of one tile's rows, see ``Gates``; the norms spread as the places of q and k are."""

    beta: Tensor
    remaining: Tensor
    cum: Tensor
    reading: Tensor
    q_norm: Tensor
    k_norm: Tensor
    total: tuple[Tensor, ...]


class Gates:
    """Factors per token of every row, [rows, C, 1]; neutral in the padding, where beta and g are zero.

    norms      of q and k: 1 / sqrt(|x|^2 + eps), q's times the scale
    cum        cumsum(g) within the chunk, in float64: in float32, the difference of two sums of several hundred would
               be off by 1e-5, and exp of a sum of -20 by 1e-6
    reading    [2, rows, C, 1] exp(cum_i) for q, -exp(cum_i) for k: from the chunk's start to token i
    remaining  exp(cum_last - cum_i), from token i to the chunk's end
    total      [rows, 1, 1] exp(cum_last)
    """

    def __init__(
        self, q: Tensor, k: Tensor, g: Tensor, beta: Tensor, plan: ChunkPlan, settings: Settings, group: int
    ) -> None:
        self.plan, self.heads, self.group = plan, settings.heads, group
        q_norm, k_norm = (_inverse_norm(x, settings, group) for x in (q, k))
        rates = self._to_rows(torch.stack([q_norm * settings.scale, k_norm, beta, g]))
        *self.norms, self.beta, logs = rates.unbind()
        self.cum = logs.double().cumsum(1)
        self.remaining = decay_(self.cum[:, -1:] - self.cum, g.dtype).to(g.dtype)
        grown = decay_(self.cum.clone(), g.dtype).to(g.dtype)
        self.reading = torch.stack([grown, -grown])
        self.total = grown[:, -1:]

    def by_tile(self, block: Block) -> list[TileGates]:
        rows = block.rows
        columns = [block.by_tile(x[rows]) for x in (self.beta, self.remaining, self.cum)]
        columns.append(block.by_tile(self.reading[:, rows], dim=1))
        for norm in self.norms:
            tiles = zip(block.tiles, block.by_tile(norm[rows]))
            columns.append(tuple(tile.kind.spread(x, self.group) for tile, x in tiles))
        return [TileGates(*tile) for tile in zip(*columns, block.by_step(self.total[rows]))]

    def _to_rows(self, x: Tensor) -> Tensor:
        """[4, B, T, HV] to [4, rows, C, 1]; in the padding the last two are zero."""
        tokens, pad = self.plan.tokens, self.plan.pad
        chunks = x.flatten(1, 2).index_select(1, tokens.view(-1)).unflatten(1, tokens.shape)
        if pad is not None:
            chunks[2:].masked_fill_(pad[..., None], 0)
        return chunks.unflatten(3, (-1, self.heads)).permute(0, 3, 1, 4, 2).flatten(1, 3).unsqueeze(-1).contiguous()

    def to_tokens(self, *xs: Tensor, like: Tensor) -> list[Tensor]:
        """Every [rows, C] in the shape of ``like``, [B, T, HV]."""
        tokens, pad = self.plan.tokens, self.plan.pad
        x = torch.stack(xs).unflatten(1, (-1, len(tokens), self.heads)).permute(0, 2, 4, 1, 3).flatten(3, 4)
        out = like.new_empty(len(xs), like.shape[0] * like.shape[1], like.shape[2])
        if pad is None:
            out.index_copy_(1, tokens.view(-1), x.flatten(1, 2))
        else:
            out[:, tokens[~pad]] = x[:, ~pad]
        return list(out.view(-1, *like.shape))


def _inverse_norm(x: Tensor, settings: Settings, group: int) -> Tensor:
    """[B, T, HV]"""
    dtype = compute_dtype(x)
    if not settings.use_qk_l2norm:
        return torch.ones(*x.shape[:2], x.shape[2] * group, dtype=dtype, device=x.device)
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square_().add_(NORM_EPS).rsqrt_()
    return norm.repeat_interleave(group, dim=2) if group > 1 else norm


class Scratch:
    """Named buffers that every tile of a call reuses: fresh memory costs a page fault per 4 KiB
    and leaves the cache."""

    def __init__(self, most_rows: int, like: Tensor) -> None:
        self.most_rows, self.like = most_rows, like
        self.memory: dict[str, Tensor] = {}

    def take(self, name: str, rows: int, *sizes: int, stack: int = 1, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous [rows, *sizes], or [stack, rows, *sizes], at the start of the buffer called ``name``."""
        per_row = math.prod(sizes) * stack
        if name not in self.memory:
            self.memory[name] = self.like.new_empty(self.most_rows * per_row, dtype=dtype)
        flat = self.memory[name][: rows * per_row]
        return flat.view(stack, rows, *sizes) if stack > 1 else flat.view(rows, *sizes)


class Call:
    """What forward and backward share: the gates, the order of work, a few constants."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, plan: ChunkPlan, settings: Settings):
        value_heads = v.shape[2]
        self.plan, self.settings = plan, settings
        self.group = value_heads // q.shape[2]
        self.chunk, self.key_dim, self.value_dim = (plan.chunk_size, q.shape[3], v.shape[3])
        self.gates = Gates(q, k, g, beta, plan, settings, self.group)
        self.like = g.new_empty(0)
        self.blocks = cut_blocks(plan, value_heads, settings.heads, settings.rows)
        self.tile_gates = [self.gates.by_tile(block) for block in self.blocks]
        self.rows = value_heads * len(plan.tokens)

    def keep(self, new: Callable[..., Tensor], rows: int) -> Kept:
        """Memory for ``rows`` rows, from ``new(name, *sizes)``."""
        C, K, V = self.chunk, self.key_dim, self.value_dim
        T = (C, C) if self.settings.correct else (0, 0)
        sizes = {"decay": (C, C), "T": T, "states": (K, V), "y": (C, V)}
        return Kept(*(new(name, rows, *size) for name, size in sizes.items()))

    def scratch(self) -> Scratch:
        return Scratch(max(size for block in self.blocks for size in block.tile_sizes), self.like)
