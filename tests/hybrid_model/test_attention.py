"""Attention of all segments in one launch against a call for each: its indexes anywhere, its kernel on a GPU."""

import math

import pytest
import torch
from torch.nn.attention import varlen

from hybrid_ft.hybrid_model import attention
from hybrid_ft.hybrid_model.attention import segment_attention
from hybrid_ft.hybrid_model.layout import build_layout

TREES = {
    "one segment": ([9], None),
    "packed": ([5, 1, 12], None),
    "with empty ones": ([0, 5, 0, 3, 0], None),
    "pairs": ([6, 4, 3, 5, 2, 1], [-1, -1, 0, 0, 1, 1]),
    "an empty prompt and an empty answer": ([0, 6, 4, 0, 3], [-1, -1, 0, 1, 1]),
    "depth three": ([7, 3, 2, 4, 1], [-1, 0, 0, 1, 2]),
}


def by_definition(q, k, v, cu_q, cu_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
    """varlen_attn: each query sees the keys up to its own, when the last query's own is the last key."""
    assert window_size == (-1, 0) and cu_q.dtype == cu_k.dtype == torch.int32
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
            weights = torch.einsum("hd,lhd->hl", query, keys[:seen]).mul(scale).softmax(-1)
            outputs.append(torch.einsum("hl,lhd->hd", weights, values[:seen]))
    return torch.stack(outputs)


def inputs(layout, heads, dtype, device):
    generator = torch.Generator().manual_seed(0)
    N = sum(layout.lengths)
    numbers = [torch.randn(N, h, 16, generator=generator, dtype=torch.float64) for h in (heads[0], *heads[1:] * 2)]
    return [x.to(device, dtype).requires_grad_() for x in numbers], torch.randn(
        N, heads[0], 16, generator=generator, dtype=torch.float64
    ).to(device, dtype)


def results(leaves, up, layout):
    o = segment_attention(*leaves, layout, 0.3)
    return [o, *torch.autograd.grad(o, leaves, up)]


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
def test_one_launch_sees_what_each_segment_sees(monkeypatch, tree, heads):
    layout = build_layout(*TREES[tree])
    leaves, up = inputs(layout, heads, torch.float64, "cpu")
    expected = results(leaves, up, layout)
    if tree != "one segment":  # for which another call is better
        monkeypatch.setattr(attention, "_fits_varlen", lambda q, gqa, dropout: True)
        calls = []
        monkeypatch.setattr(
            varlen, "varlen_attn", lambda *args, **more: calls.append(1) or by_definition(*args, **more)
        )
    got = results(leaves, up, layout)
    assert tree == "one segment" or calls == [1]
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)


def test_the_launch_takes_its_arguments():
    assert attention._VARLEN, "this torch's varlen_attn has other arguments than the GPU's path gives it"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_cpu_has_a_call_for_each(dropout):
    assert not attention._fits_varlen(torch.zeros(3, 2, 16, dtype=torch.bfloat16), False, dropout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_on_a_gpu(tree, heads, dtype):
    """Twice the error of the same steps in 16 bits, and one rounding."""
    layout = build_layout(*TREES[tree], device="cuda")
    leaves, up = inputs(layout, heads, dtype, "cuda")
    got = results(leaves, up, layout)
    on_cpu = layout.to("cpu")
    exact, rounded = (
        results([x.detach().to("cpu", d).requires_grad_() for x in leaves], up.to("cpu", d), on_cpu)
        for d in (torch.float64, dtype)
    )
    for x, y, r in zip(got, exact, rounded, strict=True):
        limit = max(2 * float((r.double() - y).norm()), torch.finfo(dtype).eps * float(y.norm()))
        assert math.isfinite(limit) and float((x.cpu().double() - y).norm()) <= limit
