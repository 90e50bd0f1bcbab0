"""The gates' Triton kernels, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.delta_gates import delta_gates, delta_gates_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def case(shape: tuple[int, ...]) -> tuple[list[Tensor], list[Tensor]]:
    """a, b, A_log, dt_bias, and the gradients of both outputs."""
    gen = torch.Generator().manual_seed(sum(shape))
    shapes = [shape, shape, shape[-1:], shape[-1:], shape, shape]
    a, b, A_log, dt_bias, *up = (torch.randn(s, generator=gen, dtype=torch.float64) for s in shapes)
    return [3 * a, 3 * b, A_log, 2 * dt_bias], up


def rule(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, twice: bool = True) -> tuple[Tensor, Tensor]:
    from hybrid_ft.kernels.delta_gates.gpu.launch import triton_delta_gates

    return triton_delta_gates(a, b, A_log, dt_bias, twice)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 30),
        pytest.param((100, 30), marks=pytest.mark.quick),
        (63, 2, 8),
        (7,),
        (33, 1),
        (2, 3, 50),
        (3, 300),
        (0, 4),
    ],
    ids=str,
)
def test_shapes(assert_as_good, shape: tuple[int, ...]) -> None:
    assert_as_good(rule, delta_gates_reference, *case(shape))


def test_writing_strength_up_to_one(assert_as_good) -> None:
    leaves, up = case((20, 6))
    assert_as_good(lambda *xs: rule(*xs, False), lambda *xs: delta_gates_reference(*xs, False), leaves, up)


def test_programs_take_several_tiles(assert_as_good, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the last one has a tile less."""
    from hybrid_ft.kernels.delta_gates.gpu import launch

    monkeypatch.setattr(launch, "PROGRAMS", 3)
    assert_as_good(rule, delta_gates_reference, *case((130, 30)))


def test_no_gate_loses_digits(device: str) -> None:
    """From closed to wide open. Relative to each result's own size, not to the largest: a sum over all gates would not
    see that the small ones are wrong."""
    a = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None].float()
    A_log, dt_bias = torch.zeros(1), torch.tensor([0.25])
    leaves = [a, a.clone(), A_log, dt_bias]

    def results(op, device: str, dtype: torch.dtype) -> list[Tensor]:
        xs = [x.to(device, dtype).requires_grad_() for x in leaves]
        outputs = op(*xs)
        return [*outputs, *torch.autograd.grad([x.sum() for x in outputs], xs[:2])]

    true = results(delta_gates_reference, "cpu", torch.float64)
    # the reference takes a sigmoid that is next to 1 from 1
    true[3] = 2 / (2 + a.double().exp() + (-a.double()).exp())
    own = results(delta_gates_reference, "cpu", torch.float32)
    got = results(rule, device, torch.float32)
    for i, (x, r, t) in enumerate(zip(got, own, true)):
        off, limit = ((((y.detach().cpu() - t) / t)[:8000]).reshape(80, 100) for y in (x, r))
        off, limit = off.norm(dim=1), 2 * limit.norm(dim=1).clamp_min(10 * 2**-24)
        assert bool((off <= limit).all()), (i, (off / limit).max())


def test_not_a_number_stays_one(device: str) -> None:
    a = torch.tensor([[torch.nan, 1.0, torch.inf, -torch.inf]], device=device)
    heads = torch.zeros(4, device=device)
    for x, y in zip(rule(a, a, heads, heads), delta_gates_reference(a, a, heads, heads)):
        torch.testing.assert_close(x, y, equal_nan=True)


def test_by_strides(device: str) -> None:
    """Columns of one joined projection, and a gradient that is expanded: the same bits as from memory of their own."""
    (a, b, A_log, dt_bias), _ = case((40, 6))
    a, b, A_log, dt_bias = (t.to(device, torch.float32) for t in (a, b, A_log, dt_bias))
    wide = torch.cat([a * torch.nan, a, b, b * torch.nan], -1).requires_grad_()
    own = [a.requires_grad_(), b.requires_grad_()]
    got, true = rule(wide[:, 6:12], wide[:, 12:18], A_log, dt_bias), rule(*own, A_log, dt_bias)
    assert all(torch.equal(x, y) for x, y in zip(got, true))
    (joined,) = torch.autograd.grad(got[0].sum() + got[1].sum(), [wide])
    assert torch.equal(joined[:, 6:18], torch.cat(torch.autograd.grad(true[0].sum() + true[1].sum(), own), -1))


def test_operators_are_what_they_say(device: str, assert_operators) -> None:
    from hybrid_ft.kernels.delta_gates.gpu.launch import backward_op, forward_op

    leaves, up = case((5, 6))
    leaves, up = ([t.to(device, torch.float32) for t in xs] for xs in (leaves, up))
    call = [t.clone().requires_grad_() for t in leaves]
    assert_operators(forward_op, backward_op, (*call, True), (*up, *leaves, True))


def test_what_the_kernels_cannot_take(device: str) -> None:
    x = torch.zeros(1, 3, device=device)
    with pytest.raises(ValueError, match="A_log: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        rule(x, x, x[0].double(), x[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_device_picks_the_path_and_nothing_waits_for_it() -> None:
    leaves, up = case((100, 30))
    a, b, A_log, dt_bias = (x.to("cuda", torch.bfloat16 if i < 2 else torch.float32) for i, x in enumerate(leaves))
    up = [up[0].to("cuda", torch.float32), up[1].to("cuda", torch.bfloat16)]
    leaves = [x.requires_grad_() for x in (a, b, A_log, dt_bias)]
    true = rule(*leaves)
    expected = torch.autograd.grad(true, leaves, up)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = delta_gates(*leaves)
        grads = torch.autograd.grad(outputs, leaves, up)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip((*outputs, *grads), (*true, *expected)))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("HV", [30, 32, 300])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, HV: int) -> None:
    from hybrid_ft.kernels.delta_gates.gpu import launch

    x, heads = torch.zeros(5, HV, dtype=torch.bfloat16), torch.zeros(HV)

    def call() -> None:
        launch.forward_op(x, x, heads, heads, True)
        launch.backward_op(x.float(), x, x, x, heads, heads, True)

    assert_compiles(launch, call, arch)
