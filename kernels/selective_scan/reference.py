"""Mamba's selective scan, one token at a time: the definition.

Every channel d has a state of M numbers, each with a decay of its own.

    h_t[d, m] = exp(dt_t[d] A[d, m]) h_{t-1}[d, m] + dt_t[d] x_t[d] B_t[m]
    y_t[d]    = sum_m C_t[m] h_t[d, m] + skip[d] x_t[d]

Gu, Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), equations 2 and 4, with
the input's step as its implementations take it, dt B.
"""

from itertools import pairwise

import torch
from torch import Tensor


def selective_scan_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, skip: Tensor, *, cu_seqlens: Tensor | None = None
) -> Tensor:
    """``selective_scan`` by its definition, in the widest dtype of its inputs; the gradients are autograd's."""
    edges = [0, len(x)] if cu_seqlens is None else cu_seqlens.tolist()
    outputs = [x[:0]]
    for start, end in pairwise(edges):
        state = torch.zeros_like(A)
        for t in range(start, end):
            state = torch.exp(dt[t, :, None] * A) * state + (dt[t] * x[t])[:, None] * B[t]
            outputs.append((state @ C[t] + skip * x[t])[None])
    return torch.cat(outputs)
