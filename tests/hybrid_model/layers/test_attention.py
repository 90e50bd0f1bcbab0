"""Attention of all segments in one launch against a call for each: its indexes anywhere, its kernel on a GPU."""

import math

import pytest
import torch
from segment_trees import TREES, by_definition, inputs, results
from torch.nn.attention import varlen

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers import attention


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
def test_one_launch_sees_what_each_segment_sees(monkeypatch, tree, heads):
    layout = build_layout(*TREES[tree])
    leaves, up = inputs(layout, heads, torch.float64, "cpu")
    expected = results(leaves, up, layout)
    if tree != "one segment":  # for which another call is better
        monkeypatch.setattr(attention, "fits_varlen", lambda q, gqa, dropout: True)
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
    assert not attention.fits_varlen(torch.zeros(3, 2, 16, dtype=torch.bfloat16), False, dropout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("D", [16, 128])
@pytest.mark.filterwarnings("ignore:flash_attn.* is installed but not used")
def test_on_a_gpu(tree, heads, dtype, D):
    """Twice the error of the same steps in 16 bits, and one rounding. On flash-attn where it is installed."""
    layout = build_layout(*TREES[tree], device="cuda")
    leaves, up = inputs(layout, heads, dtype, "cuda", D)
    got = results(leaves, up, layout)
    on_cpu = layout.to("cpu")
    exact, rounded = (
        results([x.detach().to("cpu", d).requires_grad_() for x in leaves], up.to("cpu", d), on_cpu)
        for d in (torch.float64, dtype)
    )
    for x, y, r in zip(got, exact, rounded, strict=True):
        limit = max(2 * float((r.double() - y).norm()), torch.finfo(dtype).eps * float(y.norm()))
        assert math.isfinite(limit) and float((x.cpu().double() - y).norm()) <= limit
