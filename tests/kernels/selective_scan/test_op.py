"""The selective scan against its definition, transformers' and a closed form: outputs and every gradient."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mamba.modeling_mamba import mamba_selective_scan

from hybrid_ft.kernels.selective_scan import op, selective_scan, selective_scan_reference

PACKINGS = [[0, 20], [0, 0], [0, 1], [0, 2], [0, 0, 1, 3, 3, 6, 20], [0, 30, 31, 33]]


def case(edges: list[int], D: int = 6, M: int = 5, dtype=torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """Inputs, the gradient of the outputs, the edges."""
    gen = torch.Generator().manual_seed(0)
    N = edges[-1]
    x, dt, A, B, C, skip, dy = (
        torch.randn(shape, generator=gen, dtype=torch.float64)
        for shape in [(N, D), (N, D), (D, M), (N, M), (N, M), (D,), (N, D)]
    )
    inputs = [x, torch.nn.functional.softplus(dt - 2), -A.exp(), B, C, skip]
    return [t.to(dtype) for t in inputs], dy.to(dtype), torch.tensor(edges)


def results(rule, inputs: list[Tensor], dy: Tensor, cu_seqlens: Tensor | None, dtype=None) -> list[Tensor]:
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
    y = rule(*leaves, cu_seqlens=cu_seqlens)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype), allow_unused=True, materialize_grads=True)]


def assert_close(got: list[Tensor], true: list[Tensor], tolerance: float = 1e-12) -> None:
    for x, y in zip(got, true, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("numbers", [2**22, 60], ids=["one chunk", "two tokens a chunk"])
@pytest.mark.parametrize("edges", PACKINGS, ids=str)
def test_definition_in_float64(monkeypatch: pytest.MonkeyPatch, edges: list[int], numbers: int) -> None:
    monkeypatch.setattr(op, "_NUMBERS", numbers)
    inputs = case(edges)
    assert_close(results(selective_scan, *inputs), results(selective_scan_reference, *inputs))


def test_reference_is_transformers_scan() -> None:
    (x, dt, A, B, C, skip), _, _ = case([0, 20], dtype=torch.float32)
    theirs = mamba_selective_scan(x.T[None], dt.T[None], A, B.T[None], C.T[None], D=skip)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert_close([selective_scan_reference(x, dt, A, B, C, skip)], [theirs[0].T], 1e-5)


def test_reference_is_the_sum_it_stands_for() -> None:
    """y_t = sum over s <= t of C_t exp(A (dt_{s+1} + .. + dt_t)) dt_s B_s x_s + skip x_t."""
    (x, dt, A, B, C, skip), _, _ = case([0, 12])
    total = dt.cumsum(0)
    y = [
        sum(
            ((C[t] * B[s]) * torch.exp(A * (total[t] - total[s])[:, None])).sum(-1) * dt[s] * x[s] for s in range(t + 1)
        )
        for t in range(12)
    ]
    assert_close([selective_scan_reference(x, dt, A, B, C, skip)], [torch.stack(y) + skip * x])


def test_float32_error_is_at_most_twice_the_references_own() -> None:
    inputs = case([0, 3, 150, 400], D=24, M=8)
    true = results(selective_scan_reference, *inputs)
    reference = results(selective_scan_reference, *inputs, dtype=torch.float32)
    for x, r, t in zip(results(selective_scan, *inputs, dtype=torch.float32), reference, true, strict=True):
        assert (x - t).norm() <= max(2 * (r - t).norm(), torch.finfo(torch.float32).eps * t.norm())


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6))
@settings(max_examples=15)
def test_each_segment_alone_equals_packed(lengths: list[int]) -> None:
    edges = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    (x, dt, A, B, C, skip), _, cu_seqlens = case(edges, D=3, M=2)
    packed = selective_scan(x, dt, A, B, C, skip, cu_seqlens=cu_seqlens)
    alone = [selective_scan(x[s:e], dt[s:e], A, B[s:e], C[s:e], skip) for s, e in pairwise(edges)]
    assert_close([packed], [torch.cat(alone)])


def test_nothing_of_a_neighbour_reaches_a_segment() -> None:
    inputs, dy, cu_seqlens = case([0, 5, 9, 14])
    clean = results(selective_scan, inputs, dy, cu_seqlens)
    for tensor in (inputs[0], inputs[1], inputs[3], inputs[4], dy):
        tensor[:5] = tensor[9:] = torch.nan
    poisoned = results(selective_scan, inputs, dy, cu_seqlens)
    for i in (0, 1, 2, 4, 5):
        assert torch.equal(poisoned[i][5:9], clean[i][5:9])


def test_second_halves_are_rounded_once() -> None:
    inputs, dy, cu_seqlens = case([0, 3, 20], dtype=torch.bfloat16)
    half = results(selective_scan, inputs, dy, cu_seqlens)
    wide = results(selective_scan, inputs, dy, cu_seqlens, dtype=torch.float32)
    assert half[0].dtype == torch.bfloat16 and torch.equal(half[0], wide[0].bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.randn(1, 6, 4)}, r"x, A: got \(1, 6, 4\) and \(4, 2\); they must be \[N, D\] and \[D, M\]"),
        ({"dt": torch.randn(6, 3)}, r"dt: got \(6, 3\) torch.float32; it must be float with shape \(6, 4\)"),
        ({"B": torch.ones(6, 2, dtype=torch.int64)}, r"B: got \(6, 2\) torch.int64; it must be float"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"cu_seqlens: got 0 \.\.\. 5; .* end at 6 tokens"),
    ],
)
def test_bad_argument(change: dict, message: str) -> None:
    good = {"x": (6, 4), "dt": (6, 4), "A": (4, 2), "B": (6, 2), "C": (6, 2), "skip": (4,)}
    given = {name: torch.rand(shape) for name, shape in good.items()} | change
    cu_seqlens = given.pop("cu_seqlens", None)
    with pytest.raises(ValueError, match=message) as raised:
        selective_scan(*given.values(), cu_seqlens=cu_seqlens)
    assert "\n" not in str(raised.value)
