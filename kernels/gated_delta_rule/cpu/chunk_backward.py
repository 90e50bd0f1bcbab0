"""The chunked backward pass, tile by tile, last tile first. Equations and names: chunked.py."""

from collections.abc import Callable
from functools import cache
from itertools import repeat

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.cpu.chunk_forward import KeyTile
from hybrid_ft.kernels.gated_delta_rule.cpu.tiles import Block, Call, Inputs, Kept, Kind, Scratch, TileGates, TokenRows


class Gradients:
    """dq, dk, dv by token; by row [rows, C]: dbeta, and what ``decay_gradient`` makes dg of."""

    def __init__(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.call = call
        self.q, self.k = (TokenRows.like(x, call.plan, call.group) for x in (q, k))
        self.v = TokenRows.like(v, call.plan)
        self.beta, self.read, self.stored = call.like.new_empty(3, call.rows, call.chunk)
        self.shared = call.like.new_empty(call.rows, call.chunk, dtype=torch.float64)
        self.carried = call.like.new_empty(call.rows)

    def decay_gradient(self) -> Tensor:
        """dg [rows, C]. Token t's gate scales all that was there before t, where a token from t on reads it or the
        chunk's end keeps it: earlier writes of the chunk and the state that the chunk began with."""
        gates = self.call.gates
        dg = self.shared.add_(self.read).flip(1).cumsum(1).flip(1)
        dg += self.carried[:, None] * gates.total[:, 0]
        dg[:, 1:] += self.stored.mul(gates.beta[..., 0]).cumsum(1, dtype=torch.float64)[:, :-1]
        return dg.to(self.read.dtype)


def run_backward(call: Call, inputs: Inputs, do: TokenRows, kept: Kept, d_states: Tensor, grads: Gradients) -> None:
    """Takes ``d_states`` [S, HV, K, V] from the final states' gradient to the initial states'; fills ``grads``."""
    scratch = call.scratch()
    buffers = cache(lambda kind: _BackwardTile(call, scratch, kind))
    for block, tile_gates in zip(call.blocks, call.tile_gates):
        ds = d_states[block.lanes].flatten(0, 1)
        _backward_block(call, block, tile_gates, inputs, do, buffers, ds, kept, grads)
        d_states[block.lanes] = ds.unflatten(0, (-1, block.heads))


class _BackwardTile(KeyTile):
    def __init__(self, call: Call, scratch: Scratch, kind: Kind) -> None:
        super().__init__(call, scratch, kind)
        n, C, K, V = sum(kind.steps), call.chunk, call.key_dim, call.value_dim
        self.do, self.dy, self.dv = (scratch.take(name, n, C, V) for name in ("do", "dy", "dv"))
        self.weights, self.pairs = (scratch.take(name, n, C, C, stack=2) for name in ("weights", "pairs"))
        self.q_weights, self.k_weights = self.weights.unbind()
        self.q_pairs, self.k_pairs = self.pairs.unbind()
        self.dqk = scratch.take("dqk", n, C, K, stack=2)
        self.dq, self.dk = self.dqk.unbind()
        self.d_ends = scratch.take("d_ends", n, K, V)
        # Y dS'^T takes the place of the write keys that the scan has used.
        self.dwrite, self.product = self.write_end, self.q_read
        self.do_place, self.dv_place = (kind.spread(x) for x in (self.do, self.dv))
        self.dq_place, self.dk_place = (kind.spread(x, call.group) for x in (self.dq, self.dk))
        self.shared = scratch.take("shared", n, C, C, dtype=torch.float64)
        self.diagonal = self.q_weights.diagonal(dim1=1, dim2=2)
        self.q_weights_t, self.q_pairs_t, self.k_pairs_t = (x.mT for x in (self.q_weights, self.q_pairs, self.k_pairs))
        columns = (self.q_read.mT, self.k_read.mT, self.write_end, self.do, self.dy, self.dv, self.d_ends)
        self.columns = [x.split_with_sizes(kind.steps)[::-1] for x in columns]


def _backward_block(
    call: Call,
    block: Block,
    tile_gates: list[TileGates],
    inputs: Inputs,
    do: TokenRows,
    buffers: Callable[[Kind], _BackwardTile],
    ds: Tensor,
    kept: Kept,
    grads: Gradients,
) -> None:
    """Takes ``ds`` [lanes, K, V] from the final state's gradient to the initial state's, in place."""
    by_row = (grads.carried, grads.beta, grads.read, grads.shared, grads.stored)
    tokens = (inputs.q, inputs.k, do, grads.q, grads.k, grads.v)
    tiles = zip(
        block.tiles,
        tile_gates,
        zip(*(x.places(block) for x in tokens)),
        kept.by_tile(block),
        zip(*(block.by_tile(x[block.rows]) for x in by_row)),
    )
    for tile, gates, places, (decay, T, states, y), (carried, *rows) in reversed(list(tiles)):
        at_q, at_k, at_do, at_dq, at_dk, at_dv = places
        b = buffers(tile.kind)
        steps, correct = tile.kind.steps, call.settings.correct
        do.read(at_do, b.do_place)
        if tile.padded:
            assert call.plan.pad is not None
            b.do.unflatten(0, (-1, block.heads)).masked_fill_(call.plan.pad[tile.chunks, None, :, None], 0)
        inputs.q.read(at_q, b.q_place, gates.q_norm)
        inputs.k.read(at_k, b.k_place, gates.k_norm)
        torch.mul(b.qk, gates.reading, out=b.read)
        torch.mul(b.k, gates.beta, out=b.write)
        torch.mul(b.write, gates.remaining, out=b.write_end)
        torch.bmm(b.q, b.write_t, out=b.q_weights)
        if correct:
            torch.bmm(b.k, b.write_t, out=b.k_weights)
            b.weights.mul_(decay)
            b.k_weights.tril_(-1)
        else:
            b.q_weights.mul_(decay)
        torch.bmm(b.q_weights_t, b.do, out=b.dy)
        T_t = T.mT.split_with_sizes(steps)[::-1] if correct else None
        _scan_back(b, ds, steps[::-1], gates.total[::-1], T_t)
        grads.v.write(at_dv, b.dv_place)

        torch.bmm(y, b.d_ends.mT, out=b.dwrite)
        torch.sum(b.d_ends.mul_(states), (1, 2), out=carried)
        states_t, y_t = states.mT, y.mT
        torch.bmm(b.do, y_t, out=b.q_pairs)
        torch.bmm(b.do, states_t, out=b.dq)
        if correct:
            b.k_pairs.baddbmm_(b.dv, y_t, beta=0, alpha=-1)
            torch.bmm(b.dv, states_t, out=b.dk)
        else:
            b.k_weights.zero_()
            b.k_pairs.zero_()
            b.dk.zero_()
        _finish(call, b, gates, decay, *rows)
        grads.q.write(at_dq, b.dq_place, gates.q_norm)
        grads.k.write(at_dk, b.dk_place, gates.k_norm)


def _scan_back(
    b: _BackwardTile, ds: Tensor, sizes: tuple[int, ...], totals: tuple[Tensor, ...], T_t: tuple[Tensor, ...] | None
) -> None:
    """The sequential part of a tile, last step first: takes ``ds`` [lanes, K, V] through its steps, fills b.dv, and
    b.d_ends with every dS'."""
    d_ends = b.columns[-1]
    d_ends[0].copy_(ds[: sizes[0]])
    ahead = (*d_ends[1:], ds[: sizes[-1]])
    more = (*sizes[1:], sizes[-1])
    for q_read_t, k_read_t, write_end, do, dy, dv, s, T_i, total, before, n, m in zip(
        *b.columns, T_t or repeat(None), totals, ahead, sizes, more
    ):
        dy.baddbmm_(write_end, s)
        if T_i is None:
            dv.copy_(dy)
        else:
            torch.bmm(T_i, dy, out=dv)
        if m > n:
            # The other lanes end with the step before.
            before[n:].copy_(ds[n:m])
            before = before[:n]
        torch.mul(s, total, out=before).baddbmm_(q_read_t, do)
        if T_i is not None:
            before.baddbmm_(k_read_t, dv)


def _finish(
    call: Call,
    b: _BackwardTile,
    gates: TileGates,
    decay: Tensor,
    dbeta: Tensor,
    read: Tensor,
    shared: Tensor,
    stored: Tensor,
) -> None:
    """From dO Y^T, -dV Y^T (b.pairs), dO S^T, dV S^T (b.dqk) and Y dS'^T (b.dwrite): dq and dk of the raw q and k, less
    the norms' factor.

    The rest is per token, [rows, C]. ``read``: what decay from the chunk's start to this token costs; ``shared``: from
    earlier tokens to it, less from it to later ones; ``stored``: from it to the chunk's end, without its beta.
    """
    b.weights.mul_(b.pairs)
    b.pairs.mul_(decay)
    b.k_pairs.tril_(-1)
    b.dqk.mul_(gates.reading)
    b.dwrite.mul_(gates.remaining)

    reads = torch.mul(b.qk, b.dqk, out=b.read).sum(-1)
    torch.sum(torch.mul(b.k, b.dwrite, out=b.product), -1, out=stored)
    own = b.diagonal.clone()
    b.diagonal.zero_()
    torch.sum(reads, 0, out=read)
    reads += b.weights.sum(-1)
    # In dg's sum over later tokens most pairs count on both sides: in float64 they cancel to nothing.
    b.shared.copy_(b.q_weights.add_(b.k_weights))
    torch.sub(b.shared.sum(2), b.shared.sum(1), out=shared)

    b.dq.baddbmm_(b.q_pairs, b.write)
    b.dwrite.baddbmm_(b.q_pairs_t, b.q)
    if call.settings.correct:
        b.dk.baddbmm_(b.k_pairs, b.write)
        b.dwrite.baddbmm_(b.k_pairs_t, b.k)
    torch.sum(torch.mul(b.k, b.dwrite, out=b.product), -1, out=dbeta)
    b.dk.addcmul_(b.dwrite, gates.beta)
    if call.settings.use_qk_l2norm:
        # x / |x| has the gradient (dx - x (x . dx)) / |x|; q . dq and k . dk are sums of what is at hand.
        reads[0].add_(own).div_(call.settings.scale**2)
        reads[1].addcmul_(dbeta, gates.beta[..., 0])
        b.dqk.addcmul_(b.qk, reads[..., None], value=-1)
