"""The short convolution against its definition and torch's conv1d: outputs, tails and every gradient."""

from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid_ft.kernels.short_conv import short_conv, short_conv_reference, short_conv_step

PACKINGS = [[0, 20], [0, 0], [0, 1], [0, 2], [0, 0, 1, 3, 3, 6, 20], [0, 1, 2, 3, 4, 30, 30]]


def case(edges: list[int], D: int = 6, W: int = 4, dtype=torch.float64) -> tuple[list[Tensor], list[Tensor], Tensor]:
    gen = torch.Generator().manual_seed(0)
    N, S = edges[-1], len(edges) - 1
    shapes = [(N, D), (D, W), (S, W - 1, D), (N, D), (S, W - 1, D)]
    x, weight, tail, *up = (torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype) for shape in shapes)
    return [x, weight, tail], up, torch.tensor(edges)


def results(rule, leaves: list[Tensor], up: list[Tensor], cu_seqlens: Tensor | None, dtype=None) -> list[Tensor]:
    """y, final tail, dx, dweight, d initial tail."""
    x, weight, tail = leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
    y, final_tail = rule(x, weight, cu_seqlens=cu_seqlens, initial_tail=tail, output_final_tail=True)
    loss = (y * up[0].to(y.dtype)).sum() + (final_tail * up[1].to(y.dtype)).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return [y.detach(), final_tail.detach(), *grads]


def assert_close(got: list[Tensor], true: list[Tensor], tolerance: float = 1e-12) -> None:
    for x, y in zip(got, true):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


def linear(rule):
    """Without SiLU."""
    return lambda *given, **options: rule(*given, **options, activate=False)


def biased(rule):
    """The rule whose bias is the weight's last column, so that its gradient is among the results."""
    return lambda x, weight, **options: rule(x, weight[:, :-1], weight[:, -1], **options)


@pytest.mark.parametrize("W", [1, 2, 4, 7])
@pytest.mark.parametrize("edges", PACKINGS, ids=str)
def test_definition_in_float64(edges: list[int], W: int) -> None:
    inputs = case(edges, W=W)
    assert_close(results(short_conv, *inputs), results(short_conv_reference, *inputs))
    leaves, up, cu_seqlens = inputs
    with_bias = [leaves[0], torch.cat([leaves[1], leaves[1][:, :1]], 1), leaves[2]], up, cu_seqlens
    for form in (biased, linear, lambda rule: biased(linear(rule))):
        given = inputs if form is linear else with_bias
        assert_close(results(form(short_conv), *given), results(form(short_conv_reference), *given))


def test_reference_is_torchs_convolution() -> None:
    (x, weight, tail), _, _ = case([0, 20])
    bias = weight[:, 1]
    y, final_tail = short_conv_reference(x, weight, bias, initial_tail=tail, output_final_tail=True)
    history = torch.cat([tail[0], x])
    expected = F.conv1d(history.T[None], weight[:, None], bias, groups=6)[0].T
    assert_close([y, final_tail[0]], [F.silu(expected), history[-3:]])
    assert_close([short_conv_reference(x, weight, bias, initial_tail=tail, activate=False)[0]], [expected])


@pytest.mark.parametrize("D", [5000, 30000])
def test_runs_of_rows_meet(D: int) -> None:
    """So wide that rows are worked on 16 at a time: across runs, segments and their first rows."""
    leaves, up, cu_seqlens = case([0, 1, 15, 16, 18, 33, 50], D=D)
    leaves[1] = torch.cat([leaves[1], leaves[1][:, :1]], 1)
    inputs = leaves, up, cu_seqlens
    assert_close(results(biased(short_conv), *inputs), results(biased(short_conv_reference), *inputs))
    assert_close(results(biased(linear(short_conv)), *inputs), results(biased(linear(short_conv_reference)), *inputs))


def test_float32_error_is_at_most_twice_the_references_own() -> None:
    inputs = case([0, 3, 150, 700], D=64)
    true = results(short_conv_reference, *inputs)
    reference = results(short_conv_reference, *inputs, dtype=torch.float32)
    for x, r, t in zip(results(short_conv, *inputs, dtype=torch.float32), reference, true):
        assert (x - t).norm() <= 2 * (r - t).norm()


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6))
@settings(max_examples=25)
def test_each_segment_alone_equals_packed(lengths: list[int]) -> None:
    edges = [0, *accumulate(lengths)]
    (x, weight, tail), up, cu_seqlens = case(edges)
    packed = results(short_conv, [x, weight, tail], up, cu_seqlens)
    dweight = torch.zeros_like(weight)
    for s, (start, end) in enumerate(pairwise(edges)):
        rows, one = slice(start, end), slice(s, s + 1)
        alone = results(short_conv, [x[rows], weight, tail[one]], [up[0][rows], up[1][one]], None)
        dweight += alone.pop(3)
        assert_close(alone, [packed[0][rows], packed[1][one], packed[2][rows], packed[4][one]])
    assert_close([packed[3]], [dweight])


def test_nothing_of_a_neighbour_reaches_a_segment() -> None:
    (x, weight, tail), up, cu_seqlens = case([0, 5, 9, 14])
    clean = results(short_conv, [x, weight, tail], up, cu_seqlens)
    x[:5] = x[9:] = up[0][:5] = up[0][9:] = tail[0] = tail[2] = up[1][0] = up[1][2] = torch.nan
    poisoned = results(short_conv, [x, weight, tail], up, cu_seqlens)
    for i, own in ((0, slice(5, 9)), (1, 1), (2, slice(5, 9)), (4, 1)):
        assert torch.equal(poisoned[i][own], clean[i][own])


def test_gradcheck_without_tails() -> None:
    (x, weight, _), _, cu_seqlens = case([0, 1, 5, 5], D=2)

    def rule(x: Tensor, weight: Tensor) -> Tensor:
        return short_conv(x, weight, cu_seqlens=cu_seqlens)[0]

    assert torch.autograd.gradcheck(rule, (x.requires_grad_(), weight.requires_grad_()))


def test_strided_input_and_expanded_gradient() -> None:
    (x, weight, tail), _, cu_seqlens = case([0, 3, 20])
    wide = torch.cat([x, x], dim=1)[:, 3:9].requires_grad_()
    y, _ = short_conv(wide, weight, cu_seqlens=cu_seqlens, initial_tail=tail)
    (dx,) = torch.autograd.grad(y.sum(), wide)
    again = wide.detach().contiguous().requires_grad_()
    y_true, _ = short_conv_reference(again, weight, cu_seqlens=cu_seqlens, initial_tail=tail)
    assert_close([y.detach(), dx], [y_true.detach(), torch.autograd.grad(y_true.sum(), again)[0]])


def test_half_precision_is_float32_rounded_once() -> None:
    leaves, up, cu_seqlens = case([0, 3, 20], dtype=torch.bfloat16)
    half = results(short_conv, leaves, up, cu_seqlens)
    wide = results(short_conv, leaves, up, cu_seqlens, dtype=torch.float32)
    assert all(x.dtype == torch.bfloat16 and torch.equal(x, y.bfloat16()) for x, y in zip(half[:1], wide[:1]))
    for x, y in zip(half[2:], wide[2:]):
        torch.testing.assert_close(x.float(), y, rtol=2**-7, atol=2**-6)


def test_steps_are_the_convolution() -> None:
    (x, weight, tail), _, _ = case([0, 9])
    y, final_tail = short_conv(x, weight, initial_tail=tail, output_final_tail=True)
    now = tail.clone()
    for t in range(9):
        y_t, now = short_conv_step(x[t : t + 1], now, weight)
        assert_close([y_t[0]], [y[t]])
    assert torch.equal(now, final_tail)


BAD = {
    "x rank": ({"x": torch.randn(1, 6, 4)}, r"x: got \(1, 6, 4\) torch.float32; .* \[N, D\]"),
    "x integer": ({"x": torch.ones(6, 4, dtype=torch.int64)}, r"x: got \(6, 4\) torch.int64; .* float"),
    "weight shape": ({"weight": torch.randn(5, 4)}, r"weight: got \(5, 4\) torch.float32; .* D = 4 and W at least 1"),
    "bias": ({"bias": torch.zeros(4, 1)}, r"bias: got \(4, 1\) torch.float32; it must be float with shape \(4,\)"),
    "edges": ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens: got 0 \.\.\. 5; .* end at 6 tokens"),
    "tail": ({"initial_tail": torch.zeros(2, 3, 4)}, r"initial_tail: got \(2, 3, 4\) torch.float32; .* \(1, 3, 4\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        short_conv(**{"x": torch.randn(6, 4), "weight": torch.randn(4, 4), **change})
    assert "\n" not in str(raised.value)


def test_step_checks_its_tail() -> None:
    for tail in (torch.zeros(2, 2, 4), torch.zeros(2, 3, 4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"tail: got \(2, ., 4\) torch.*; it must be float with shape \(2, 3, 4\)"):
            short_conv_step(torch.randn(2, 4), tail, torch.randn(4, 4))
