"""The chunked forward pass, tile by tile. Equations and names: chunked.py."""

from functools import cache
from itertools import repeat

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.tiles import Call, Inputs, Kept, Scratch, TileGates, TokenRows, decay_


class KeyTile:
    """Scratch for tiles of one kind that forward and backward share, and every view of it that they use."""

    def __init__(self, call: Call, scratch: Scratch, steps: tuple[int, ...]) -> None:
        n, C, K = sum(steps), call.chunk, call.key_dim
        keys = scratch.take("keys", n, C, K, stack=3)
        self.q, self.k, self.write = keys.unbind()
        self.qk, self.k_write = keys[:2], keys[1:]
        self.read = scratch.take("read", n, C, K, stack=2)
        self.write_end = scratch.take("write_end", n, C, K)
        self.write_t = self.write.mT

    def fill(self, inputs: Inputs, at_q: Tensor, at_k: Tensor, gates: TileGates) -> None:
        """q and k, both normalised, what reads the state, what writes it."""
        inputs.q.read(at_q, self.q, gates.norm[0])
        inputs.k.read(at_k, self.k, gates.norm[1])
        torch.mul(self.qk, gates.reading, out=self.read)
        torch.mul(self.k, gates.beta, out=self.write)
        torch.mul(self.write, gates.remaining, out=self.write_end)


class _ForwardTile(KeyTile):
    def __init__(self, call: Call, scratch: Scratch, steps: tuple[int, ...]) -> None:
        super().__init__(call, scratch, steps)
        n, C, K, V = sum(steps), call.chunk, call.key_dim, call.value_dim
        self.w, self.o = (scratch.take(name, n, C, V) for name in "wo")
        self.q_weights = scratch.take("q_weights", n, C, C)
        self.k_write64 = scratch.take("k_write64", n, C, K, stack=2, dtype=torch.float64)
        self.k64, self.write64_t = self.k_write64[0], self.k_write64[1].mT
        self.k_weights, self.T = (scratch.take(name, n, C, C, dtype=torch.float64) for name in ("k_weights", "T"))
        self.eye = torch.eye(C, dtype=torch.float64, device=self.k.device).expand(n, C, C)
        self.scratch = call.keep(lambda name, *sizes: scratch.take("kept " + name, *sizes), n)
        self.columns = [x.split_with_sizes(steps) for x in (self.read[1], self.write_end.mT, self.w)]

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
    buffers = cache(lambda steps: _ForwardTile(call, scratch, steps))
    for block in call.blocks:
        segments, heads = block.lanes()
        state = states[segments, heads].flatten(0, 1)
        for tile, gates, (at_q, at_k, at_v), at_o, kept_tile in zip(
            block.tiles,
            call.gates.by_tile(block),
            zip(*(x.places(block) for x in inputs)),
            outputs.places(block),
            repeat(None) if kept is None else kept.by_tile(block),
        ):
            b = buffers(tile.steps)
            decay, T, starts, y = kept_tile or b.scratch
            inputs.v.read(at_v, b.w)
            b.fill(inputs, at_q, at_k, gates)
            cum, rest = gates.cum
            decay_(torch.sub(cum, cum.mT, out=decay).add_(rest).sub_(rest.mT)).tril_()
            T.copy_(b.invert(decay))
            torch.bmm(b.q, b.write_t, out=b.q_weights).mul_(decay)
            _scan(b, state, tile.steps, gates.total, *(x.split_with_sizes(tile.steps) for x in (T, starts, y)))
            torch.bmm(b.read[0], starts, out=b.o)
            outputs.write(at_o, b.o.baddbmm_(b.q_weights, y))
        states[segments, heads] = state.unflatten(0, (-1, block.heads))


def _scan(
    b: _ForwardTile,
    state: Tensor,
    sizes: tuple[int, ...],
    totals: tuple[Tensor, ...],
    T: tuple[Tensor, ...],
    starts: tuple[Tensor, ...],
    y: tuple[Tensor, ...],
) -> None:
    """The sequential part of a tile: takes ``state`` [lanes, K, V] through its steps, fills ``starts`` and ``y``."""
    starts[0].copy_(state[: sizes[0]])
    ahead = (*starts[1:], state[: sizes[-1]])
    left = (*sizes[1:], sizes[-1])
    for k_read, write_end_t, w, T_i, s, y_i, total, after, n, m in zip(
        *b.columns, T, starts, y, totals, ahead, sizes, left
    ):
        torch.bmm(T_i, w.baddbmm_(k_read, s), out=y_i)
        if m < n:
            # The other lanes end here.
            torch.mul(s[m:], total[m:], out=state[m:n]).baddbmm_(write_end_t[m:], y_i[m:])
            s, total, write_end_t, y_i = s[:m], total[:m], write_end_t[:m], y_i[:m]
        torch.mul(s, total, out=after).baddbmm_(write_end_t, y_i)
