"""The RMS norm's Triton kernels, alone and with the residual.

In the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.rms_norm import add_rms_norm_reference, rms_norm_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    gen = torch.Generator().manual_seed(sum(shapes[0]))
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes]


def alone(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    from hybrid_ft.kernels.rms_norm.gpu.launch import triton_rms_norm

    return triton_rms_norm(x, None, None, weight, eps)[1]


def after(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    from hybrid_ft.kernels.rms_norm.gpu.launch import triton_rms_norm

    return triton_rms_norm(x, None, residual, weight, 1e-6)[1]


def before(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    from hybrid_ft.kernels.rms_norm.gpu.launch import triton_rms_norm

    return triton_rms_norm(x, residual, None, weight, 1e-6)


def after_reference(x: Tensor, weight: Tensor, residual: Tensor) -> Tensor:
    return rms_norm_reference(x, weight, residual=residual)


def before_reference(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    return add_rms_norm_reference(x, residual, weight)


@pytest.mark.parametrize(
    "shape",
    [(1, 128), (63, 100), (100, 7), (5,), (2, 3, 384), pytest.param((2, 3840), marks=pytest.mark.quick), (0, 8)],
    ids=str,
)
def test_shapes(assert_as_good, shape: tuple[int, ...]) -> None:
    x, weight, residual, dy, d_total = normal(shape, shape[-1:], shape, shape, shape)
    assert_as_good(alone, rms_norm_reference, [5 * x, weight], [dy])
    assert_as_good(after, after_reference, [x, weight, residual], [dy])
    assert_as_good(before, before_reference, [x, weight, residual], [d_total, dy])


def test_programs_take_several_tiles(assert_as_good, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last one has a tile less."""
    from hybrid_ft.kernels.rms_norm.gpu import launch

    monkeypatch.setattr(launch, "PROGRAMS", 3)
    x, weight, residual, dy, d_total = normal((75, 200), (200,), (75, 200), (75, 200), (75, 200))
    assert_as_good(before, before_reference, [x, weight, residual], [d_total, dy])


@pytest.mark.parametrize("used", [0, 1])
def test_only_one_output_is_used(assert_as_good, used: int) -> None:
    x, weight, residual, dy = normal((9, 16), (16,), (9, 16), (9, 16))
    assert_as_good(lambda *xs: before(*xs)[used], lambda *xs: before_reference(*xs)[used], [x, weight, residual], [dy])


def test_a_wider_residual_stream(device: str) -> None:
    """As under autocast: the stream is float32, what is added is not. Its gradients come back in each one's dtype."""
    x, weight, residual = normal((9, 16), (16,), (9, 16))
    leaves = [x.to(device, torch.float16), weight.to(device, torch.float32), residual.to(device, torch.float32)]
    for op, reference in ((after, after_reference), (before, before_reference)):
        results = []
        for f in (op, reference):
            there = [t.clone().requires_grad_() for t in leaves]
            y = f(*there)
            results.append([*([y] if isinstance(y, Tensor) else y)])
            results[-1] += torch.autograd.grad(sum(t.square().sum() for t in results[-1]), there)
        for a, b in zip(*results):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_by_strides(device: str) -> None:
    x, weight, residual = (t.to(device, torch.float32) for t in normal((40, 16), (16,), (40, 16)))
    wide = torch.cat([x * torch.nan, x], 1)[:, 16:].requires_grad_()
    own = x.clone().requires_grad_()
    for op in (after, before):
        got, true = op(wide, weight, residual), op(own, weight, residual)
        got, true = (t if isinstance(t, Tensor) else t[1] for t in (got, true))
        assert torch.equal(got, true)
        assert torch.equal(torch.autograd.grad(got.sum(), wide)[0], torch.autograd.grad(true.sum(), own)[0])


def test_rows_that_are_not_there_need_no_eps(device: str) -> None:
    x, weight = (t.to(device, torch.float32).requires_grad_() for t in normal((3, 16), (16,)))
    assert all(t.isfinite().all() for t in torch.autograd.grad(alone(x, weight, 0.0).sum(), (x, weight)))


def test_operators_are_what_they_say(device: str, assert_operators) -> None:
    from hybrid_ft.kernels.rms_norm.gpu.launch import backward_op, forward_op

    x, weight, more, dy = (t.to(device, torch.float32) for t in normal((5, 16), (16,), (5, 16), (5, 16)))
    leaves = [t.clone().requires_grad_() for t in (x, weight, more)]
    for residuals, d_total in (((None, None), None), ((leaves[2], None), dy), ((None, leaves[2]), None)):
        back = dy, d_total, x, weight, 1e-6
        assert_operators(forward_op, backward_op, (leaves[0], *residuals, leaves[1], 1e-6), back)


def test_what_the_kernels_cannot_take(device: str) -> None:
    x = torch.zeros(1, 16385, device=device)
    with pytest.raises(ValueError, match="x: got last size 16385; on a GPU it must be at most 16384"):
        alone(x, x[0])
    with pytest.raises(ValueError, match="residual: got torch.float64; on a GPU it must be float32, bfloat16 or"):
        after(x, x[0], x.double())


@compiles
@pytest.mark.kernels
@pytest.mark.parametrize("D", [3840, 2048, 100, 8192])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, D: int) -> None:
    from hybrid_ft.kernels.rms_norm.gpu import launch

    x = torch.zeros(5, D, dtype=torch.bfloat16)

    def call(before: Tensor | None, after: Tensor | None) -> None:
        launch.forward_op(x, before, after, x[0], 1e-6)
        launch.backward_op(x, before, x, x[0], 1e-6)

    assert_compiles(launch, lambda: call(x, None), arch)
    assert_compiles(launch, lambda: call(None, x), arch)
