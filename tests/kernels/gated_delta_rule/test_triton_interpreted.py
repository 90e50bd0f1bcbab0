"""The Triton kernels in Triton's interpreter, in float32: outputs and every gradient against the float64 reference.

These tests run in a process of their own, which ``test_interpreter`` starts in two halves, with those of
test_triton_interpreted_pieces.py. The interpreter knows nothing of warps, layouts and races, and its bfloat16 is wrong:
test_triton_compiled.py and test_triton_gpu.py are for those. A GPU has the kernels for 16 bits alone; here float32
shows what their rounding would hide.
"""

from pathlib import Path

import pytest
import torch
from delta_rule_interpreted import assert_right, rule
from interpreting import inside, interpret, outside
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import NAMES, case, error, results

pytest.importorskip("triton")


@outside
@pytest.mark.kernels
@pytest.mark.parametrize("half", ["not kernels", "kernels"])
def test_interpreter(half: str) -> None:
    files = sorted(Path(__file__).parent.glob("test_triton_interpreted*.py"))
    assert len(files) == 2
    interpret(files, half)


@inside
@pytest.mark.parametrize(
    ("edges", "heads", "dims", "gate", "keep"),
    [
        ([0, 0, 1, 1, 64, 130], (1, 2), (80, 48), "typical", False),
        ([0, 100], (1, 1), (96, 192), "closed", True),
        ([0, 63], (2, 2), (16, 16), "open", False),
    ],
    ids=str,
)
def test_short(edges: list[int], heads: tuple[int, int], dims: tuple[int, int], gate: str, keep: bool) -> None:
    assert_right(case(edges, heads, dims, gate), keep=keep)


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("gate", ["open", "typical", "closed", "some closed"])
@pytest.mark.parametrize("dims", [(96, 192), (128, 128), (16, 16), (80, 48)], ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 100, 130])
def test_lengths(length: int, dims: tuple[int, int], gate: str) -> None:
    assert_right(case([0, length], (1, 1), dims, gate, seed=length))


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("heads", [(2, 2), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("edges", [[0, 0, 1, 1, 2, 65, 130, 195, 195], [0, 128, 129]], ids=str)
def test_segments_and_heads(edges: list[int], heads: tuple[int, int], keep: bool) -> None:
    assert_right(case(edges, heads, (48, 32)), keep=keep)


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("dims", [(K, V) for K in (112, 144, 240, 256) for V in (80, 256)], ids=str)
def test_head_sizes(dims: tuple[int, int]) -> None:
    assert_right(case([0, 70], (1, 1), dims))


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("beta", [0.0, 1e-6, 2.0])
def test_betas(beta: float) -> None:
    """dbeta is right where beta is 0: nothing was divided by it."""
    leaves, up, cu_seqlens = case([0, 100], (1, 2), (32, 48))
    leaves[4] = torch.full_like(leaves[4], beta).float().double()
    assert_right((leaves, up, cu_seqlens))
    leaves[4][:, ::2] = 2 - leaves[4][:, ::2]
    assert_right((leaves, up, cu_seqlens))


@inside
def test_no_norm_and_a_scale() -> None:
    leaves, up, cu_seqlens = case([0, 70], (1, 1), (32, 16))
    leaves[1] = torch.nn.functional.normalize(leaves[1], dim=-1).float().double()
    options = {"scale": 0.3, "use_qk_l2norm": False}
    true = results(gated_delta_rule_reference, leaves, up, cu_seqlens, **options)
    got = results(rule, leaves, up, cu_seqlens, torch.float32, **options)
    assert max(error(x, t) for x, t in zip(got, true)) < 1e-6


@inside
def test_dense_batch_by_its_strides() -> None:
    """Two rows whose memory is neither contiguous nor in one run: heads before tokens, and a row
    longer than the view."""
    leaves, up, cu_seqlens = case([0, 70, 140], (2, 2), (32, 16))
    true = results(rule, leaves, up, cu_seqlens, torch.float32)
    rows = [x.unflatten(1, (2, 70)).squeeze(0).float() for x in (*leaves[:5], up[0])]
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in rows[:5]]
    longer = [torch.cat([x, torch.full_like(x[:, :5], torch.nan)], 1)[:, :70].requires_grad_() for x in rows[:5]]
    for inputs in (by_head, longer):
        assert not inputs[0].is_contiguous()
        state = leaves[5].float().requires_grad_()
        outputs = rule(*inputs, cu_seqlens=None, initial_state=state, output_final_state=True)
        grads = torch.autograd.grad(outputs, [*inputs, state], [rows[5], up[1].float()])
        for name, x, t in zip(NAMES, (*outputs, *grads), true):
            assert torch.equal(x.reshape(t.shape), t), name


@inside
def test_offsets_past_int32() -> None:
    """Views whose tokens lie 10 GB apart end to end; what lies between is never touched and takes no memory."""
    leaves, up, cu_seqlens = case([0, 30, 100], (1, 1), (16, 16))
    true = results(rule, leaves, up, cu_seqlens, torch.float32)
    stride = 2**31 // 90

    def wide(x: Tensor) -> Tensor:
        view = torch.empty(100 * stride).as_strided(x.shape, (0, stride, 16, 1))
        return view.copy_(x)

    q, k, v, do = (wide(x) for x in (*leaves[:3], up[0]))
    inputs = [x.requires_grad_() for x in (q, k, v, *(x.float() for x in leaves[3:]))]
    outputs = rule(*inputs[:5], cu_seqlens=cu_seqlens, initial_state=inputs[5], output_final_state=True)
    got = (*outputs, *torch.autograd.grad(outputs, inputs, [do, up[1].float()]))
    assert all(torch.equal(x, t) for x, t in zip(got, true))


@inside
def test_an_expanded_gradient_twice() -> None:
    leaves, up, cu_seqlens = case([0, 66], (1, 1), (16, 16))
    q, k, v, g, beta = (x.float().requires_grad_() for x in leaves[:5])
    o, _ = rule(q, k, v, g, beta, cu_seqlens=cu_seqlens, initial_state=None, output_final_state=True)
    ones = results(
        gated_delta_rule_reference,
        [*leaves[:5], torch.zeros_like(leaves[5])],
        [torch.ones_like(up[0]), torch.zeros_like(up[1])],
        cu_seqlens,
    )
    grads = torch.autograd.grad(o.sum(), [q, k, v, g, beta], retain_graph=True)
    assert max(error(x, t) for x, t in zip(grads, ones[2:7])) < 2e-6
    again = torch.autograd.grad(o.sum(), [q, k, v, g, beta])
    assert all(torch.equal(x, y) for x, y in zip(grads, again))


@inside
def test_no_tokens() -> None:
    leaves, _, _ = case([0, 0], (1, 1), (16, 16))
    inputs = [x.float().requires_grad_() for x in leaves]
    for edges in (torch.tensor([0, 0]), None):
        o, final_state = rule(*inputs[:5], cu_seqlens=edges, initial_state=inputs[5], output_final_state=True)
        assert o.shape == (1, 0, 1, 16)
        assert torch.equal(final_state, inputs[5])
        (d_state,) = torch.autograd.grad(final_state.sum(), inputs[5])
        assert torch.equal(d_state, torch.ones_like(d_state))


@inside
def test_nothing_of_a_neighbour_reaches_a_segment() -> None:
    """Not even what arithmetic cannot cancel: the neighbours are NaN."""
    leaves, up, cu_seqlens = case([0, 50, 110, 130], (1, 1), (32, 16))
    clean = results(rule, leaves, up, cu_seqlens, torch.float32)
    for x in (*leaves[:5], up[0]):
        x[:, :50] = x[:, 110:] = torch.nan
    for x in (leaves[5], up[1]):
        x[0] = x[2] = torch.nan
    poisoned = results(rule, leaves, up, cu_seqlens, torch.float32)
    middle = [slice(1, 2) if name in ("final_state", "d_initial_state") else (0, slice(50, 110)) for name in NAMES]
    assert all(torch.equal(x[i], y[i]) for x, y, i in zip(poisoned, clean, middle))


@inside
def test_a_gate_that_is_nan_is_not_hidden() -> None:
    leaves, _, cu_seqlens = case([0, 30], (1, 1), (16, 16))
    leaves[3][0, 7] = torch.nan
    o, _ = rule(*(x.float() for x in leaves[:5]), cu_seqlens=cu_seqlens, initial_state=None, output_final_state=False)
    assert o[0, 7:].isnan().all()
