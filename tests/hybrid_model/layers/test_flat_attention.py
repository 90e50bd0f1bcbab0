"""Windows over a layout, against scores that are masked one by one; what cannot be computed is refused."""

import pytest
import torch
from segment_trees import TREES, by_definition, inputs
from torch.nn.attention import varlen

from hybrid_ft.hybrid_model.door.current import laid_out
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers import flat_attention as module
from hybrid_ft.hybrid_model.layers.flat_attention import flat_attention, window_attention


def masked(q, k, v, layout, scale, window):
    """float64, a token at a time."""
    starts = [0, *torch.tensor(layout.lengths).cumsum(0).tolist()]
    out = []
    group = q.shape[1] // k.shape[1]
    for s, history in enumerate(layout.ancestors):
        tokens = [t for a in history for t in range(starts[a], starts[a + 1])]
        first = len(tokens) - layout.lengths[s]
        for place in range(first, len(tokens)):
            seen = tokens[max(0, place - window + 1) : place + 1]
            for h in range(q.shape[1]):
                scores = k[seen, h // group].double() @ q[tokens[place], h].double() * scale
                out.append(scores.softmax(0) @ v[seen, h // group].double())
    return torch.stack(out).view(len(q), q.shape[1], -1)


@pytest.mark.parametrize("window", [1, 3, 8, 64])
@pytest.mark.parametrize("parents", [None, [-1, 0, 0, 1]], ids=["packed", "tree"])
def test_windows_equal_masked_scores(relative, window, parents):
    lengths = [9, 1, 20, 5]
    layout = build_layout(lengths, parents)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(35, heads, size, generator=generator) for heads, size in ((4, 8), (2, 8), (2, 6)))
    assert relative(window_attention(q, k, v, layout, 0.3, window), masked(q, k, v, layout, 0.3, window)) < 1e-6


def in_windows(leaves, up, layout, window):
    o = window_attention(*leaves, layout, 0.3, window)
    return [o, *torch.autograd.grad(o, leaves, up)]


@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
def test_one_launch_sees_the_same_windows(monkeypatch, tree, heads, window):
    layout = build_layout(*TREES[tree])
    leaves, up = inputs(layout, heads, torch.float64, "cpu")
    expected = in_windows(leaves, up, layout, window)
    monkeypatch.setattr(module, "fits_varlen", lambda q, gqa, dropout: True)
    calls = []
    monkeypatch.setattr(varlen, "varlen_attn", lambda *args, **more: calls.append(1) or by_definition(*args, **more))
    for x, y in zip(in_windows(leaves, up, layout, window), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
    assert calls == [1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
def test_windows_on_a_gpu(tree, heads, window):
    layout = build_layout(*TREES[tree])
    expected = in_windows(*inputs(layout, heads, torch.float64, "cpu"), layout, window)
    got = in_windows(*inputs(layout, heads, torch.bfloat16, "cuda"), layout.to("cuda"), window)
    for x, y in zip(got, expected, strict=True):
        assert (x.double().cpu() - y).norm() <= 0.02 * y.norm()


def test_scores_that_are_changed_otherwise_are_refused():
    x = torch.randn(1, 2, 4, 8)
    with laid_out(build_layout([4])), pytest.raises(ValueError, match="softcap is not computed on flat batches"):
        flat_attention(torch.nn.Linear(1, 1), x, x, x, None, softcap=30.0)


@pytest.mark.parametrize("window", [None, 4])
def test_under_autocast_what_rope_has_widened_is_narrowed(monkeypatch, window):
    """By dtype the kernel is chosen that takes all documents at once."""
    seen = []
    name = "segment_attention" if window is None else "window_attention"
    monkeypatch.setattr(module, name, lambda q, k, v, **how: seen.extend(x.dtype for x in (q, k, v)) or q)
    q, k, v = (torch.randn(1, 2, 10, 8) for _ in range(3))
    with laid_out(build_layout([4, 6])), torch.autocast("cpu", torch.bfloat16):
        flat_attention(torch.nn.Identity(), q, k, v.bfloat16(), None, sliding_window=window)
        assert seen == [torch.bfloat16] * 3
        seen.clear()
        flat_attention(torch.nn.Identity(), q.double(), k.double(), v.double(), None, sliding_window=window)
    assert seen == [torch.float64] * 3
