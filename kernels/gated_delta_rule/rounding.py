"""The GPU kernels' 16-bit rounding, in plain torch.

For tests and the self-test, whose tolerance it sets: products take operands in q's dtype and add up in float32; what
one kernel leaves for another (T, the weights, S, dS', Y, dV, E and F) is kept in q's dtype. In float64 nothing is
rounded, and the gradients are exact. Names and equations: cpu/chunked.py and gpu/scans.py.
"""

from itertools import pairwise

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.reference import NORM_EPS, compute_dtype

CHUNK = 64


class _Head:
    """One chunk of one head, [tokens, ...], and what does not depend on the state."""

    def __init__(self, inputs: list[Tensor], scale: float, l2norm: bool, correct: bool) -> None:
        q, k, v, g, beta = inputs
        self.l2norm, self.correct = l2norm, correct
        self.round = lambda x: x.to(q.dtype).to(compute_dtype(q))
        self.q, self.k, self.v = (x.to(compute_dtype(q)) for x in (q, k, v))
        self.beta = beta.to(self.q.dtype)
        squares = (x.square().sum(-1) + NORM_EPS for x in (self.q, self.k))
        self.norm_q, self.norm_k = (torch.rsqrt(x) if l2norm else torch.ones_like(x) for x in squares)
        cum = g.double().cumsum(0)
        self.decay = (cum[:, None] - cum).tril().exp().tril().to(self.q.dtype)
        self.whole = cum[-1].exp().to(self.q.dtype)
        from_start, self.to_end = (x.exp().to(self.q.dtype) for x in (cum, cum[-1] - cum))
        self.read_q, self.read_k = from_start * self.norm_q * scale, from_start * self.norm_k * correct
        self.write = self.norm_k * self.beta
        self.scale = scale
        pairs = (self.k @ self.k.mT * self.norm_k[:, None] * self.write * self.decay).tril(-1) * correct
        eye = torch.eye(len(pairs), dtype=pairs.dtype)
        T = torch.linalg.solve_triangular((eye + pairs).double(), eye.double(), upper=False, unitriangular=True)
        self.T = self.round(T.to(pairs.dtype))
        self.weights = self.round(self.q @ self.k.mT * (scale * self.norm_q)[:, None] * self.write * self.decay)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """o, and the state [K, V] at the chunk's end."""
        self.state = self.round(state)
        self.y = self.round(self.T @ self.round(self.v - self.read_k[:, None] * (self.k @ self.state)))
        o = self.read_q[:, None] * (self.q @ self.state) + self.weights @ self.y
        written = self.round(self.y * (self.write * self.to_end)[:, None])
        return o, state * self.whole + self.k.mT @ written

    def backward(self, do: Tensor, d_state: Tensor) -> tuple[list[Tensor], Tensor]:
        """dq, dk, dv, dg, dbeta, and the gradient of the state that the chunk began with."""
        round, decay, later = self.round, self.decay, self.decay.tril(-1)
        do, ds = round(do), round(d_state)
        dy = self.weights.mT @ do + (self.write * self.to_end)[:, None] * (self.k @ ds)
        dv = round(self.T.mT @ round(dy))
        d_start = d_state * self.whole + self.q.mT @ round(do * self.read_q[:, None])
        d_start = d_start - self.k.mT @ round(dv * self.read_k[:, None])

        e = do @ self.y.mT * decay * (self.scale * self.norm_q)[:, None]
        f = -(dv @ self.y.mT) * later * self.norm_k[:, None] * self.correct
        dq = self.read_q[:, None] * (do @ self.state.mT)
        dk = -self.read_k[:, None] * (dv @ self.state.mT)
        db = self.to_end[:, None] * (self.y @ ds.mT)
        change = (self.q * dq).sum(-1) + (self.k * dk).sum(-1)
        stored = (self.k * db).sum(-1) * self.write
        pairs = ((e * (self.q @ self.k.mT)).tril(-1) + f * (self.k @ self.k.mT)) * self.write
        change = change + pairs.sum(1) - pairs.sum(0)
        dg = change.flip(0).cumsum(0).flip(0) + (self.state * ds).sum() * self.whole
        dg[1:] += stored.cumsum(0)[:-1]
        dq = dq + round(e * self.write) @ self.k
        dk = dk + round(f * self.write) @ self.k
        db = (db + round(e).mT @ self.q + round(f).mT @ self.k) * self.norm_k[:, None]
        dbeta = (db * self.k).sum(-1)
        dk = dk + db * self.beta[:, None]
        if self.l2norm:
            dq, dk = _through_norm(dq, self.q, self.norm_q), _through_norm(dk, self.k, self.norm_k)
        return [dq, dk, dv, dg, dbeta], d_start


def _through_norm(dx: Tensor, x: Tensor, norm: Tensor) -> Tensor:
    return dx - x * ((x * dx).sum(-1) * norm.square())[:, None]


def rounded_gated_delta_rule(
    leaves: list[Tensor],
    gradients: list[Tensor],
    cu_seqlens: Tensor,
    *,
    scale: float | None = None,
    use_qk_l2norm: bool = True,
    correct: bool = True,
) -> list[Tensor]:
    """o, final state, dq, dk, dv, dg, dbeta, d_initial_state of q, k, v [1, T, H, .], g, beta [1, T, H] and an initial
    state [S, H, K, V], given the gradients of both outputs; H = HV. Slow."""
    q, k, v, g, beta, initial_state = leaves
    scale = q.shape[3] ** -0.5 if scale is None else scale
    dtype = compute_dtype(q)
    out = [torch.zeros(x.shape, dtype=dtype) for x in (v, initial_state, q, k, v, g, beta, initial_state)]
    for segment, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        for head in range(q.shape[2]):
            places = [slice(at, min(at + CHUNK, end)) for at in range(start, end, CHUNK)]
            chunks = [_Head([x[0, place, head] for x in leaves[:5]], scale, use_qk_l2norm, correct) for place in places]
            state = initial_state[segment, head].to(dtype)
            for place, chunk in zip(places, chunks):
                out[0][0, place, head], state = chunk.forward(state)
            out[1][segment, head] = state
            d_state = gradients[1][segment, head].to(dtype)
            for place, chunk in reversed(list(zip(places, chunks))):
                grads, d_state = chunk.backward(gradients[0][0, place, head].to(dtype), d_state)
                for total, x in zip(out[2:7], grads):
                    total[0, place, head] = x
            out[7][segment, head] = d_state
    return [x.to(q.dtype) if i in (0, 2, 3, 4) else x for i, x in enumerate(out)]
