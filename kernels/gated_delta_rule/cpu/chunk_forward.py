"""The chunked forward pass, tile by tile. Equations and names: chunked.py."""

from functools import cache
from itertools import repeat

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.cpu.tiles import Call, Inputs, Kept, Kind, Scratch, TokenRows, decay_


class KeyTile:
    """Scratch for tiles of one kind that forward and backward share, and every view of it that they use."""

    def __init__(self, call: Call, scratch: Scratch, kind: Kind) -> None:
        n, C, K = sum(kind.steps), call.chunk, call.key_dim
        keys = scratch.take("keys", n, C, K, stack=3)
        self.q, self.k, self.write = keys.unbind()
        self.qk, self.k_write = keys[:2], keys[1:]
        self.read = scratch.take("read", n, C, K, stack=2)
        self.q_read, self.k_read = self.read.unbind()
        self.write_end = scratch.take("write_end", n, C, K)
        self.write_t = self.write.mT
        self.q_place, self.k_place = (kind.spread(x, call.group) for x in (self.q, self.k))


class _ForwardTile(KeyTile):
    def __init__(self, call: Call, scratch: Scratch, kind: Kind) -> None:
        super().__init__(call, scratch, kind)
        n, C, K, V = sum(kind.steps), call.chunk, call.key_dim, call.value_dim
        self.w, self.o = (scratch.take(name, n, C, V) for name in "wo")
        self.q_weights = scratch.take("q_weights", n, C, C)
        if call.settings.correct:
            self.k_write64 = scratch.take("k_write64", n, C, K, stack=2, dtype=torch.float64)
            self.k64, self.write64_t = self.k_write64[0], self.k_write64[1].mT
            self.k_weights, self.T = (scratch.take(name, n, C, C, dtype=torch.float64) for name in ("k_weights", "T"))
            self.eye = torch.eye(C, dtype=torch.float64, device=self.k.device).expand(n, C, C)
        self.kept = call.keep(lambda name, *sizes: scratch.take("kept " + name, *sizes), n)
        self.w_place, self.o_place = (kind.spread(x) for x in (self.w, self.o))
        self.columns = [x.split_with_sizes(kind.steps) for x in (self.k_read, self.write_end.mT, self.w)]

    def invert(self, decay: Tensor) -> Tensor:
        """T, in float64: for nearly collinear keys and beta near 2 it magnifies the rounding of K B^T."""
        self.k_write64.copy_(self.k_write)
        torch.bmm(self.k64, self.write64_t, out=self.k_weights).mul_(decay)
        # The solver reads the strict lower triangle alone.
        return torch.linalg.solve_triangular(
            self.k_weights, self.eye, upper=False, left=False, unitriangular=True, out=self.T
        )


def run_forward(call: Call, inputs: Inputs, states: Tensor, kept: Kept | None, outputs: TokenRows) -> None:
    """Takes ``states`` [S, HV, K, V] from initial to final in place; fills ``kept`` and ``outputs``."""
    scratch = call.scratch()
    buffers = cache(lambda kind: _ForwardTile(call, scratch, kind))
    for block, tile_gates in zip(call.blocks, call.tile_gates):
        state = states[block.lanes].flatten(0, 1)
        for tile, gates, (at_q, at_k, at_v), at_o, kept_tile in zip(
            block.tiles,
            tile_gates,
            zip(*(x.places(block) for x in inputs)),
            outputs.places(block),
            repeat(None) if kept is None else kept.by_tile(block),
        ):
            b = buffers(tile.kind)
            decay, T, starts, y = kept_tile or b.kept
            decay_(torch.sub(gates.cum, gates.cum.mT, out=decay)).tril_()
            inputs.k.read(at_k, b.k_place, gates.k_norm)
            torch.mul(b.k, gates.beta, out=b.write)
            if call.settings.correct:
                T.copy_(b.invert(decay))
            inputs.q.read(at_q, b.q_place, gates.q_norm)
            torch.bmm(b.q, b.write_t, out=b.q_weights).mul_(decay)
            torch.mul(b.qk, gates.reading, out=b.read)
            torch.mul(b.write, gates.remaining, out=b.write_end)
            inputs.v.read(at_v, b.w_place)
            steps = tile.kind.steps
            if not call.settings.correct:
                y.copy_(b.w)
            T_of_steps = T.split_with_sizes(steps) if call.settings.correct else None
            _scan(b, state, steps, gates.total, T_of_steps, *(x.split_with_sizes(steps) for x in (starts, y)))
            torch.bmm(b.q_read, starts, out=b.o).baddbmm_(b.q_weights, y)
            outputs.write(at_o, b.o_place)
        states[block.lanes] = state.unflatten(0, (-1, block.heads))


def _scan(
    b: _ForwardTile,
    state: Tensor,
    sizes: tuple[int, ...],
    totals: tuple[Tensor, ...],
    T: tuple[Tensor, ...] | None,
    starts: tuple[Tensor, ...],
    y: tuple[Tensor, ...],
) -> None:
    """The sequential part of a tile: takes ``state`` [lanes, K, V] through its steps, fills ``starts`` and, where there
    is T, ``y``."""
    starts[0].copy_(state[: sizes[0]])
    ahead = (*starts[1:], state[: sizes[-1]])
    left = (*sizes[1:], sizes[-1])
    for k_read, write_end_t, w, T_i, s, y_i, total, after, n, m in zip(
        *b.columns, T or repeat(None), starts, y, totals, ahead, sizes, left
    ):
        if T_i is not None:
            torch.bmm(T_i, w.baddbmm_(k_read, s), out=y_i)
        if m < n:
            # The other lanes end here.
            torch.mul(s[m:], total[m:], out=state[m:n]).baddbmm_(write_end_t[m:], y_i[m:])
            s, total, write_end_t, y_i = s[:m], total[:m], write_end_t[:m], y_i[:m]
        torch.mul(s, total, out=after).baddbmm_(write_end_t, y_i)
