"""SwiGLU's Triton kernels, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.swiglu import swiglu_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")


def normal(*shapes: tuple[int, ...]) -> list[Tensor]:
    gen = torch.Generator().manual_seed(sum(shapes[0]))
    return [torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes]


def rule(gate: Tensor, up: Tensor) -> Tensor:
    from hybrid_ft.kernels.swiglu.gpu.launch import triton_swiglu

    return triton_swiglu(gate, up)


@pytest.mark.parametrize(
    "shape", [(1, 1), (63, 100), (3,), pytest.param((2, 3, 344), marks=pytest.mark.quick), (3, 2500), (0, 8)], ids=str
)
def test_shapes(assert_as_good, shape: tuple[int, ...]) -> None:
    gate, up, dy = normal(shape, shape, shape)
    assert_as_good(rule, swiglu_reference, [4 * gate, up], [dy])


def test_gates_that_are_closed_or_open_wide(assert_as_good) -> None:
    gate, up, dy = normal((20, 64), (20, 64), (20, 64))
    assert_as_good(rule, swiglu_reference, [60 * gate, up], [dy])


def test_by_strides(device: str) -> None:
    """The halves of a joined projection, and an expanded gradient."""
    (x,) = (t.to(device, torch.float32) for t in normal((30, 40)))
    joined = x.clone().requires_grad_()
    halves = [half.contiguous().requires_grad_() for half in x.chunk(2, -1)]
    got, true = rule(*joined.chunk(2, -1)), rule(*halves)
    assert torch.equal(got, true)
    (d_joined,) = torch.autograd.grad(got.sum(), joined)
    assert torch.equal(d_joined, torch.cat(torch.autograd.grad(true.sum(), halves), -1))


def test_operators_are_what_they_say(device: str, assert_operators) -> None:
    from hybrid_ft.kernels.swiglu.gpu.launch import backward_op, forward_op

    gate, up, dy = (t.to(device, torch.float32) for t in normal((5, 16), (5, 16), (5, 16)))
    leaves = [t.clone().requires_grad_() for t in (gate, up)]
    assert_operators(forward_op, backward_op, tuple(leaves), (dy, gate, up))


def test_what_the_kernels_cannot_take(device: str) -> None:
    x = torch.zeros(1, 3, device=device)
    with pytest.raises(ValueError, match="up: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        rule(x, x.double())


@compiles
@pytest.mark.kernels
@pytest.mark.parametrize("D", [11008, 344, 50])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, D: int) -> None:
    from hybrid_ft.kernels.swiglu.gpu import launch

    x = torch.zeros(5, D, dtype=torch.bfloat16)

    def call() -> None:
        launch.forward_op(x, x)
        launch.backward_op(x, x, x)

    assert_compiles(launch, call, arch)
