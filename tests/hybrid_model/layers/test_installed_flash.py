"""flash-attn where it is installed: used where its trial is right, and said where it is not."""

import sys
import types
import warnings

import pytest
import torch
from segment_trees import TREES, by_definition, inputs, results
from torch.nn.attention import varlen
from torch.utils.checkpoint import checkpoint

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers import attention, installed_flash
from hybrid_ft.hybrid_model.layers.attention import segment_attention


@pytest.fixture
def card(monkeypatch):
    """Calls a CPU's tensors those of a GPU of the given compute capability, on which torch's attention is by
    definition; ``calls`` is whose attention ran."""
    installed_flash._tried.cache_clear()
    monkeypatch.setattr(attention, "_fits_flash", lambda q, dropout: not dropout)
    monkeypatch.setattr(attention, "fits_varlen", lambda q, gqa, dropout: True)
    calls = []

    def of_torch(*args, **more):
        calls.append("torch")
        return by_definition(*args, **more)

    monkeypatch.setattr(varlen, "varlen_attn", of_torch)

    def pose(major, package=None, function=None):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
        for name in ("flash_attn", *installed_flash.PACKAGES.values()):
            monkeypatch.setitem(sys.modules, name, None)  # what import makes of None is "not found"
        if package:
            module = types.ModuleType(package)
            module.flash_attn_varlen_func = lambda *args, **more: calls.append(package) or function(*args, **more)
            monkeypatch.setitem(sys.modules, package, module)
        return calls

    yield pose
    installed_flash._tried.cache_clear()


def flash_attn(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, **more):
    assert causal and more == {"deterministic": False}
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    return by_definition(q, k, v, *lengths, scale=softmax_scale, window_size=(-1, 0), enable_gqa=True)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("major", "package"), installed_flash.PACKAGES.items())
def test_flash_attn_where_it_is_installed(card, major, package, tree, heads):
    layout = build_layout(*TREES[tree])
    leaves, up = inputs(layout, heads, torch.float64, "cpu")
    calls = card(major)
    expected = results(leaves, up, layout)
    assert package not in calls
    installed_flash._tried.cache_clear()
    # one of them gives the sums as well
    card(major, package, flash_attn if major == 9 else lambda *args, **more: (flash_attn(*args, **more), None))
    calls.clear()
    got = results(leaves, up, layout)
    empty = 0 in layout.lengths
    assert calls == (["torch"] if empty else [package, package])  # the first is the trial
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13)
    results(leaves, up, layout)
    assert len(calls) == (2 if empty else 3)


@pytest.mark.parametrize("major", [8, 12])
def test_flash_attn_is_for_the_gpus_it_was_made_for(card, major):
    calls = card(major, "flash_attn_interface", flash_attn)
    layout = build_layout([5, 3])
    results(*inputs(layout, (2, 2), torch.float64, "cpu"), layout)
    assert calls == ["torch"]


def refuses(*args, **more):
    raise RuntimeError("FA3 does not support backward pass\nmore")


def leaks(q, k, v, *, cu_seqlens_q, cu_seqlens_k, **more):
    """One segment of all tokens."""
    whole = [x[[0, -1]] for x in (cu_seqlens_q, cu_seqlens_k)]
    more |= {"max_seqlen_q": len(q), "max_seqlen_k": len(k)}
    return flash_attn(q, k, v, cu_seqlens_q=whole[0], cu_seqlens_k=whole[1], **more)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, up):
        return up / 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (refuses, "RuntimeError: FA3 does not support backward pass; torch's"),
        (leaks, "the result is off by"),
        (lambda q, k, v, **more: flash_attn(q, Halved.apply(k), v, **more), "dk is off by 5e-01"),
        (lambda *args, **more: flash_attn(*args, **more) * torch.nan, "the result is off by nan"),
    ],
    ids=["refuses", "leaks", "wrong gradient", "no number"],
)
def test_a_flash_attn_that_fails_its_trial_is_not_used(card, function, said):
    calls = card(9, "flash_attn_interface", function)
    layout = build_layout([5, 3])
    leaves, up = inputs(layout, (2, 2), torch.float64, "cpu")
    with pytest.warns(UserWarning, match=f"flash_attn_interface is installed but not used .*{said}"):
        results(leaves, up, layout)
    assert calls == ["flash_attn_interface", "torch"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results(leaves, up, layout)
    assert calls == ["flash_attn_interface", "torch", "torch"]


def test_a_flash_attn_that_lacks_something_is_told(card, monkeypatch, tmp_path):
    card(9)
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    (tmp_path / "flash_attn_interface.py").write_text("import flash_attn_3_cuda\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    layout = build_layout([5, 3])
    with pytest.warns(UserWarning, match="ModuleNotFoundError: No module named 'flash_attn_3_cuda'"):
        results(*inputs(layout, (2, 2), torch.float64, "cpu"), layout)


@pytest.mark.parametrize("around", ["checkpoint", "inference"])
def test_the_trial_leaves_what_surrounds_it_alone(card, around):
    calls = card(9, "flash_attn_interface", flash_attn)
    layout = build_layout([5, 3])
    (q, k, v), up = inputs(layout, (2, 2), torch.float64, "cpu")
    state = torch.get_rng_state()
    if around == "inference":
        with torch.inference_mode():
            segment_attention(q.detach(), k.detach(), v.detach(), layout, 0.3)
        assert len(calls) == 2
    else:
        o = checkpoint(segment_attention, q, k, v, layout, 0.3, use_reentrant=False)
        torch.autograd.grad(o, (q, k, v), up)
        assert len(calls) == 3
    assert torch.equal(state, torch.get_rng_state())
