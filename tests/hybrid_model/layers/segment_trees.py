"""Trees of segments, and attention by its definition."""

import torch

from hybrid_ft.hybrid_model.layers.attention import segment_attention

TREES = {
    "one segment": ([9], None),
    "packed": ([5, 1, 12], None),
    "with empty ones": ([0, 5, 0, 3, 0], None),
    "pairs": ([6, 4, 3, 5, 2, 1], [-1, -1, 0, 0, 1, 1]),
    "an empty prompt and an empty answer": ([0, 6, 4, 0, 3], [-1, -1, 0, 1, 1]),
    "depth three": ([7, 3, 2, 4, 1], [-1, 0, 0, 1, 2]),
}


def by_definition(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """varlen_attn: each query sees the keys up to its own, when the last query's own is the last key; of those before
    it the last ``window_size[0]``, where that is not -1."""
    past, later = window_size
    assert past >= -1 and later == 0 and cu_q.dtype == cu_k.dtype == torch.int32
    assert enable_gqa or q.shape[1] == k.shape[1]
    assert max_q == cu_q.diff().max() and max_k == cu_k.diff().max()
    assert cu_q[-1] == len(q) and cu_k[-1] == len(k)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    outputs = []
    for s in range(len(cu_q) - 1):
        keys, values = (x[cu_k[s] : cu_k[s + 1]] for x in (k, v))
        later = len(keys) - int(cu_q[s + 1] - cu_q[s])
        for i, query in enumerate(q[cu_q[s] : cu_q[s + 1]]):
            seen = later + i + 1
            first = 0 if past == -1 else max(0, seen - 1 - past)
            weights = torch.einsum("hd,lhd->hl", query, keys[first:seen]).mul(scale).softmax(-1)
            outputs.append(torch.einsum("hl,lhd->hd", weights, values[first:seen]))
    return torch.stack(outputs)


def inputs(layout, heads, dtype, device, D=16):
    generator = torch.Generator().manual_seed(0)
    N = sum(layout.lengths)
    numbers = [torch.randn(N, h, D, generator=generator, dtype=torch.float64) for h in (heads[0], *heads[1:] * 2)]
    return [x.to(device, dtype).requires_grad_() for x in numbers], torch.randn(
        N, heads[0], D, generator=generator, dtype=torch.float64
    ).to(device, dtype)


def results(leaves, up, layout):
    o = segment_attention(*leaves, layout, 0.3)
    return [o, *torch.autograd.grad(o, leaves, up)]
