"""The gated RMS norm's Triton kernels, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    gen = torch.Generator().manual_seed(sum(shapes[0]))
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes]


def rule(x: Tensor, gate: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    from hybrid_ft.kernels.gated_rms_norm.gpu.launch import triton_gated_rms_norm

    return triton_gated_rms_norm(x, gate, weight, eps)


SHAPES = [
    (1, 192),
    pytest.param((63, 2, 192), marks=pytest.mark.quick),
    (100, 3, 16),
    (7,),
    (33, 1, 256),
    (2, 3, 5, 50),
    (1, 5000),
    (0, 4, 8),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(assert_as_good, shape: tuple[int, ...]) -> None:
    x, gate, weight, dy = normal(shape, shape, shape[-1:], shape)
    assert_as_good(rule, gated_rms_norm_reference, [3 * x, gate, weight], [dy])


def test_programs_take_several_tiles(assert_as_good, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last one has a tile less."""
    from hybrid_ft.kernels.gated_rms_norm.gpu import launch

    monkeypatch.setattr(launch, "PROGRAMS", 3)
    x, gate, weight, dy = normal((75, 200), (75, 200), (200,), (75, 200))
    assert_as_good(rule, gated_rms_norm_reference, [x, gate, weight], [dy])


def test_gates_that_are_closed(assert_as_good) -> None:
    x, gate, weight, dy = normal((20, 64), (20, 64), (64,), (20, 64))
    assert_as_good(rule, gated_rms_norm_reference, [x, 60 * gate, weight], [dy])


def test_by_strides(device: str) -> None:
    """Columns of a wider tensor, tokens that lie head by head, an expanded gradient: as from memory of their own."""
    x, gate, weight = (t.to(device, torch.float32) for t in normal((40, 3, 16), (40, 3, 16), (16,)))
    wide = torch.cat([gate * torch.nan, gate, gate * torch.nan], -1)[..., 16:32].requires_grad_()
    by_head = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    own = [x.requires_grad_(), gate.requires_grad_()]
    got, true = (rule(*xs, weight) for xs in ((by_head, wide), own))
    assert torch.equal(got, true)
    for a, b in zip(torch.autograd.grad(got.sum(), (by_head, wide)), torch.autograd.grad(true.sum(), own)):
        assert torch.equal(a, b)


def test_rows_that_are_not_there_need_no_eps(device: str) -> None:
    x, gate, weight = (t.to(device, torch.float32).requires_grad_() for t in normal((3, 16), (3, 16), (16,)))
    grads = torch.autograd.grad(rule(x, gate, weight, 0.0).sum(), (x, gate, weight))
    assert all(t.isfinite().all() for t in grads)


def test_operators_are_what_they_say(device: str, assert_operators) -> None:
    from hybrid_ft.kernels.gated_rms_norm.gpu.launch import backward_op, forward_op

    x, gate, weight, dy = (t.to(device, torch.float32) for t in normal((5, 2, 16), (5, 2, 16), (16,), (5, 2, 16)))
    leaves = [t.clone().requires_grad_() for t in (x, gate, weight)]
    assert_operators(forward_op, backward_op, (*leaves, 1e-5), (dy, x, gate, weight, 1e-5))


def test_what_the_kernels_cannot_take(device: str) -> None:
    x = torch.zeros(1, 16385, device=device)
    with pytest.raises(ValueError, match="x: got last size 16385; on a GPU it must be at most 16384"):
        rule(x, x, x[0])
    with pytest.raises(ValueError, match="gate: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        rule(x, x.double(), x[0])


@compiles
@pytest.mark.kernels
@pytest.mark.parametrize("D", [192, 128, 50])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, D: int) -> None:
    from hybrid_ft.kernels.gated_rms_norm.gpu import launch

    x = torch.zeros(5, 2, D, dtype=torch.bfloat16)

    def call() -> None:
        launch.forward_op(x, x, x[0, 0], 1e-5)
        launch.backward_op(x, x, x, x[0, 0], 1e-5)

    assert_compiles(launch, call, arch)
