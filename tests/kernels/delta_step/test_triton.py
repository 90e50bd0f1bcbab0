"""The step's Triton kernel, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.delta_step import delta_step, delta_step_reference

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def case(B: int, heads: tuple[int, int], dims: tuple[int, int], W: int = 4) -> list[Tensor]:
    """x, a, b, tail, state, conv_weight, A_log, dt_bias, float64; gates from nearly closed to nearly open."""
    gen = torch.Generator().manual_seed(B + sum(dims) + W)
    (H, HV), (K, V) = heads, dims
    D = 2 * H * K + HV * V
    shapes = [(B, D), (B, HV), (B, HV), (B, W - 1, D), (B, HV, K, V), (D, W), (HV,), (HV,)]
    x, a, b, *rest = (torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes)
    return [x, 3 * a, 3 * b, *rest]


def prepared(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As the layer has them: the state and the gates' parameters in float32."""
    return [x.to(torch.float32 if i in (4, 6, 7) else dtype) for i, x in enumerate(inputs)]


def rule(*inputs: Tensor, twice: bool = True) -> tuple[Tensor, ...]:
    from hybrid_ft.kernels.delta_step.gpu.launch import triton_delta_step

    HV, K, V = inputs[4].shape[1:]
    return triton_delta_step(*inputs, (inputs[0].shape[1] - HV * V) // (2 * K), twice)


def three_launches(*inputs: Tensor) -> tuple[Tensor, ...]:
    from hybrid_ft.kernels.delta_gates.gpu.launch import triton_delta_gates
    from hybrid_ft.kernels.gated_delta_rule.gpu.step_launch import step_op
    from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv_step

    x, a, b, tail, state, weight, A_log, dt_bias = inputs
    HV, K, V = state.shape[1:]
    y, new_tail = triton_short_conv_step(x, tail, weight)
    keys = (x.shape[1] - HV * V) // 2
    q, k, v = (t.unflatten(1, (-1, d)) for t, d in zip(y.split([keys, keys, HV * V], 1), (K, K, V)))
    o, new_state = step_op(q, k, v, *triton_delta_gates(a, b, A_log, dt_bias, True), state, K**-0.5, True)
    return o, new_tail, new_state


def assert_as_good(inputs: list[Tensor], dtype: torch.dtype, device: str, twice: bool = True) -> None:
    """At most twice the error that the torch path has in the same dtype, against the definition in float64; the tail is
    moved, not computed. Twice the same bits, and the old tail and state are left alone."""
    inputs = prepared(inputs, dtype)
    true = delta_step_reference(*(x.double() for x in inputs), twice)
    own = delta_step(*inputs, allow_neg_eigval=twice)
    there = [x.to(device) for x in inputs]
    before = [x.clone() for x in there]
    got, again = rule(*there, twice=twice), rule(*there, twice=twice)
    assert all(torch.equal(x, y) for x, y in zip(there, before))
    for name, x, y, r, t in zip(("o", "tail", "state"), got, again, own, true):
        assert x.dtype == r.dtype and x.shape == r.shape and torch.equal(x, y), name
        error, limit = (float((z.cpu().double() - t).norm()) for z in (x, r))
        assert error <= 2 * limit, f"{name} is off by {error}, the torch path by {limit}"


QUICK = [pytest.param(1, (2, 2), (96, 192), marks=pytest.mark.quick), (3, (1, 3), (48, 80)), (2, (2, 4), (16, 16))]
LONG = [(1, (30, 30), (96, 192)), (3, (2, 4), (96, 192)), (3, (2, 2), (128, 128)), (1, (3, 3), (80, 48))]
LONG += [(2, (1, 2), (256, 256)), (1, (16, 32), (128, 128)), (3, (2, 2), (16, 240)), (3, (2, 6), (192, 128))]
SIZES = QUICK + [pytest.param(*sizes, marks=pytest.mark.kernels) for sizes in LONG]


@pytest.mark.parametrize(("B", "heads", "dims"), SIZES, ids=str)
def test_sizes(nan_memory, dtype, device: str, B: int, heads: tuple[int, int], dims: tuple[int, int]) -> None:
    assert_as_good(case(B, heads, dims), dtype, device)


@pytest.mark.parametrize("W", [1, 2, 3, 5])
def test_widths(nan_memory, dtype, device: str, W: int) -> None:
    assert_as_good(case(3, (2, 4), (48, 80), W), dtype, device)


def test_writing_strength_up_to_one(nan_memory, dtype, device: str) -> None:
    assert_as_good(case(2, (2, 4), (48, 32)), dtype, device, twice=False)


@pytest.mark.skipif(not INTERPRETED, reason="compiled on its own, a kernel may contract its sums otherwise")
@pytest.mark.parametrize("half", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("B", "heads", "dims"), QUICK[1:], ids=str)
def test_same_bits_as_three_launches(
    nan_memory, device: str, B: int, heads: tuple[int, int], dims: tuple[int, int], half: torch.dtype
) -> None:
    """What they would store between them is rounded as it would be stored: the convolution's outputs, beta, and a tail
    that is wider than x."""
    inputs = prepared(case(B, heads, dims), half)
    inputs[3] = inputs[3].float() * 1.001
    rounded = [x.to(half) if i == 3 else x for i, x in enumerate(inputs)]
    for x, y, z in zip(rule(*inputs), three_launches(*inputs), rule(*rounded)):
        assert x.dtype == y.dtype and torch.equal(x, y) and torch.equal(x, z)


@pytest.mark.parametrize("value", [40.0, -40.0, torch.inf, torch.nan])
def test_gates_at_their_ends(device: str, value: float) -> None:
    """Of one head, which leaves the other heads as they are."""
    inputs = prepared(case(2, (1, 2), (16, 32)), torch.float32)
    inputs[1][:, 1] = inputs[2][:, 1] = value
    for x, y in zip(rule(*(x.to(device) for x in inputs)), delta_step(*inputs)):
        torch.testing.assert_close(x.cpu(), y, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_many_steps_are_the_definition(device: str) -> None:
    x, a, b, tail, state, *parameters = case(20, (1, 2), (16, 32))
    now = [tail[:1], state[:1]]
    own = [t.to(device, torch.float32) for t in now]
    there = [t.to(device, torch.float32) for t in parameters]
    for row in zip(x, a, b):
        o, *now = delta_step_reference(*(t[None] for t in row), *now, *parameters)
        got, *own = rule(*(t[None].to(device, torch.float32) for t in row), *own, *there)
        torch.testing.assert_close(got.cpu().double(), o, rtol=1e-5, atol=1e-5)
    for ours, true in zip(own, now):
        torch.testing.assert_close(ours.cpu().double(), true, rtol=1e-5, atol=1e-5)


def test_by_strides(device: str) -> None:
    """Columns of a joined projection, a window's last rows, rows of a larger cache, and what lies column by column: the
    same bits as from memory of their own."""
    x, a, b, tail, state, weight, A_log, dt_bias = (t.to(device, torch.float32) for t in case(3, (2, 4), (48, 32)))
    D = x.shape[1]
    true = rule(x, a, b, tail, state, weight, A_log, dt_bias)
    joined = torch.cat([x * torch.nan, x, a, b], 1)[:, D:].split([D, 4, 4], 1)
    window = torch.cat([tail[:, :1] * torch.nan, tail], 1)[:, 1:]
    cached = torch.stack([state * torch.nan, state], 1)[:, 1]
    assert not any(t.is_contiguous() for t in (*joined, window, cached))
    by_column = [t.mT.contiguous().mT for t in (x, a, b, tail, state, weight)]
    spread = [torch.stack([t, t * torch.nan], 1)[:, 0] for t in (A_log, dt_bias)]
    for other in ((*joined, window, cached, weight, A_log, dt_bias), (*by_column, *spread)):
        assert all(torch.equal(t, y) for t, y in zip(rule(*other), true))


def test_parameters_and_state_in_half_precision(device: str) -> None:
    """Read as they are, the new state in float32."""
    inputs = [x.to(device, torch.float32) for x in case(2, (1, 2), (16, 32))]
    half = [*inputs[:4], *(x.half() for x in inputs[4:])]
    got, true = rule(*half), rule(*(x.float() for x in half))
    assert all(torch.equal(x, y) and x.dtype == torch.float32 for x, y in zip(got, true))


def test_rows_of_nothing(device: str) -> None:
    inputs = prepared(case(1, (1, 2), (16, 32)), torch.float32)
    o, tail, state = rule(*(x.to(device)[:0] if i < 5 else x.to(device) for i, x in enumerate(inputs)))
    assert o.shape == (0, 2, 32) and tail.shape == (0, 3, 96) and state.shape == (0, 2, 16, 32)


def test_operator_is_what_it_says(device: str) -> None:
    from hybrid_ft.kernels.delta_step.gpu.launch import step_op

    inputs = [x.to(device, torch.float32) for x in case(2, (1, 2), (16, 32))]
    half = [*inputs[:3], inputs[3].half(), inputs[4].half(), *inputs[5:]]
    for given in (inputs, half):
        torch.library.opcheck(step_op, (*given, 1, True))
    whole = torch.compile(rule, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(x, y) for x, y in zip(whole(*inputs), rule(*inputs)))


def test_what_the_kernel_cannot_take(device: str) -> None:
    inputs = [x.to(device, torch.float32) for x in case(1, (1, 1), (16, 16))]
    for i, name in enumerate(("x", "a", "b", "tail", "state", "conv_weight", "A_log", "dt_bias")):
        wide = [x.double() if i == j else x for j, x in enumerate(inputs)]
        with pytest.raises(ValueError, match=f"^{name}: got torch.float64; on a GPU it must be float32, bfloat16"):
            rule(*wide)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_device_picks_the_path_and_nothing_waits_for_it() -> None:
    inputs = [x.to("cuda") for x in prepared(case(3, (2, 4), (96, 192)), torch.bfloat16)]
    true = rule(*inputs)  # compiles
    leaves = [x.requires_grad_() for x in inputs]
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = delta_step(*leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) and not x.requires_grad for x, y in zip(got, true))
    for i, message in ((2, "b: got shape"), (3, "tail: got shape"), (7, "dt_bias: got shape")):
        with pytest.raises(ValueError, match=message):
            delta_step(*(x[..., :-1] if i == j else x for j, x in enumerate(inputs)))
    with pytest.raises(
        ValueError, match="q, k: got head size 24; on a GPU it must be a multiple of 16, from 16 to 256"
    ):
        delta_step(*(x.to("cuda", torch.float32) for x in case(1, (1, 1), (24, 32))))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("dims", [(96, 192), (128, 128), (256, 256), (16, 16)], ids=str)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, dims: tuple[int, int]) -> None:
    from hybrid_ft.kernels.delta_step.gpu import launch

    inputs = prepared(case(1, (2, 4), dims), torch.bfloat16)
    assert_compiles(launch, lambda: launch.step_op(*inputs, 2, True), arch)
