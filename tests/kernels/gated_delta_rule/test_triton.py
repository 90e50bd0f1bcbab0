"""One token's Triton kernel, in the interpreter in float32 or on a GPU, and compiled ahead of time. The kernels for
whole segments have test_triton_interpreted.py, test_triton_compiled.py and test_triton_gpu.py."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference, gated_delta_rule_step

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GATES = {
    "open": lambda u: 0 * u,
    "typical": lambda u: -2 * u,
    "closed": lambda u: 0 * u - 20,
    "shut": lambda u: u / -0.0,
}


def case(B: int, heads: tuple[int, int], dims: tuple[int, int], gate: str = "typical") -> list[Tensor]:
    """q, k, v, g, beta (up to 2) and the state, float64."""
    gen = torch.Generator().manual_seed(B + sum(dims))
    (H, HV), (K, V) = heads, dims
    shapes = [(B, H, K), (B, H, K), (B, HV, V), (B, HV, K, V)]
    q, k, v, state = (torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes)
    uniform = [torch.rand(B, HV, generator=gen, dtype=torch.float64) for _ in range(2)]
    return [q, k, v, GATES[gate](uniform[0]), 2 * uniform[1], state]


def rule(*inputs: Tensor, scale: float | None = None, use_qk_l2norm: bool = True) -> tuple[Tensor, Tensor]:
    from hybrid_ft.kernels.gated_delta_rule.gpu.step_launch import step_op

    scale = inputs[0].shape[2] ** -0.5 if scale is None else scale
    return step_op(*inputs, scale, use_qk_l2norm)


def assert_as_good(inputs: list[Tensor], dtype: torch.dtype, device: str, **options: Any) -> None:
    """At most twice the error that the torch path has in the same dtype, against the definition in float64."""
    inputs = [x.to(dtype if i < 3 else torch.float32) for i, x in enumerate(inputs)]
    rows, state = [x.double()[:, None] for x in inputs[:5]], inputs[5].double()
    o, after = gated_delta_rule_reference(*rows, initial_state=state, output_final_state=True, **options)
    own = gated_delta_rule_step(*inputs, **options)
    there = [x.to(device) for x in inputs]
    before = there[5].clone()
    got, again = rule(*there, **options), rule(*there, **options)
    assert torch.equal(there[5], before)
    for name, x, y, r, t in zip(("o", "state"), got, again, own, (o[:, 0], after)):
        assert x.dtype == r.dtype and x.shape == r.shape and torch.equal(x, y), name
        error, limit = (float((z.cpu().double() - t).norm()) for z in (x, r))
        assert error <= 2 * limit, f"{name} is off by {error}, the torch path by {limit}"


QUICK = [(1, (2, 2), (96, 192)), (3, (1, 3), (48, 80)), (2, (2, 4), (16, 16))]
LONG = [(1, (30, 30), (96, 192)), (3, (2, 4), (96, 192)), (3, (2, 2), (128, 128)), (1, (3, 3), (80, 48))]
LONG += [(2, (1, 2), (256, 256)), (1, (16, 32), (128, 128)), (3, (2, 2), (16, 240))]


@pytest.mark.parametrize("gate", list(GATES))
@pytest.mark.parametrize(
    ("B", "heads", "dims"), QUICK + [pytest.param(*sizes, marks=pytest.mark.kernels) for sizes in LONG], ids=str
)
def test_sizes_and_gates(
    nan_memory, dtype, device: str, B: int, heads: tuple[int, int], dims: tuple[int, int], gate: str
) -> None:
    assert_as_good(case(B, heads, dims, gate), dtype, device)


@pytest.mark.parametrize("options", [{"scale": 1}, {"use_qk_l2norm": False}], ids=str)
def test_options(nan_memory, dtype, device: str, options: dict) -> None:
    assert_as_good(case(2, (2, 4), (48, 32)), dtype, device, **options)


@pytest.mark.quick
def test_a_closed_gates_state_loses_no_digits(nan_memory, device: str) -> None:
    """With nothing written all that there is comes through the decay."""
    inputs = case(2, (4, 4), (16, 16))
    inputs[3] -= 18
    inputs[4].zero_()
    assert_as_good(inputs, torch.float32, device)


def test_many_steps_are_the_definition(device: str) -> None:
    q, k, v, g, beta, state = case(20, (1, 2), (16, 32))
    o, final = gated_delta_rule_reference(
        *(x[None] for x in (q, k, v, g, beta)), initial_state=state[:1], output_final_state=True
    )
    now, outputs = state[:1].float().to(device), []
    for row in zip(*(x.float().to(device) for x in (q, k, v, g, beta))):
        out, now = rule(*(x[None] for x in row), now)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs).cpu().double(), o[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(now.cpu().double(), final, rtol=1e-5, atol=1e-6)


def test_by_strides(device: str) -> None:
    """Columns of the joined convolution's output and of a joined projection, and rows of a larger cache: the same bits
    as from memory of their own."""
    q, k, v, g, beta, state = (x.to(device, torch.float32) for x in case(3, (2, 4), (48, 32)))
    joined = torch.cat([x.flatten(1) for x in (q, k, v)], 1).split([96, 96, 128], 1)
    strided = [x.view(3, -1, d) for x, d in zip(joined, (48, 48, 32))]
    strided += torch.cat([g * torch.nan, g, beta], 1)[:, 4:].split(4, 1)
    strided.append(torch.stack([state * torch.nan, state], 1)[:, 1])
    assert [x.is_contiguous() for x in strided] == 6 * [False]
    true = rule(q, k, v, g, beta, state)
    assert all(torch.equal(x, y) for x, y in zip(rule(*strided), true))
    gaps = [torch.cat([x, x * torch.nan], -1)[..., : x.shape[-1]] for x in (q, k, v)]
    by_column = [x.mT.contiguous().mT for x in (q, k, v)]
    for other in (gaps, by_column):
        assert all(torch.equal(x, y) for x, y in zip(rule(*other, g.T.contiguous().T, beta, state), true))
    assert all(torch.equal(x, y) for x, y in zip(rule(q, k, v, g, beta, state.mT.contiguous().mT), true))


def test_beta_and_state_in_half_precision(device: str) -> None:
    """As autocast leaves them: read as they are, the new state in float32."""
    q, k, v, g, beta, state = (x.to(device, torch.float32) for x in case(2, (1, 2), (16, 32)))
    beta, state = beta.half(), state.half()
    got, true = rule(q, k, v, g, beta, state), rule(q, k, v, g, beta.float(), state.float())
    assert all(torch.equal(x, y) and x.dtype == torch.float32 for x, y in zip(got, true))


def test_rows_of_nothing(device: str) -> None:
    o, state = rule(*(x.to(device, torch.float32)[:0] for x in case(1, (1, 2), (16, 32))))
    assert o.shape == (0, 2, 32) and state.shape == (0, 2, 16, 32)


def test_operator_is_what_it_says(device: str) -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu.step_launch import step_op

    inputs = [x.to(device, torch.float32) for x in case(2, (1, 2), (16, 32))]
    torch.library.opcheck(step_op, (*inputs, 0.25, True))
    whole = torch.compile(rule, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(x, y) for x, y in zip(whole(*inputs), rule(*inputs)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_device_picks_the_path_and_nothing_waits_for_it() -> None:
    inputs = [
        x.to("cuda", torch.bfloat16 if i < 3 else torch.float32) for i, x in enumerate(case(3, (2, 4), (96, 192)))
    ]
    true = rule(*inputs)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = gated_delta_rule_step(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(x, y) for x, y in zip(got, true))
    with pytest.raises(
        ValueError, match="q, k: got head size 24; on a GPU it must be a multiple of 16, from 16 to 256"
    ):
        gated_delta_rule_step(*(x.to("cuda", torch.float32) for x in case(1, (1, 1), (24, 32))))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("dims", [(96, 192), (128, 128), (256, 256), (16, 16)], ids=str)
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, dims: tuple[int, int]) -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu import step_launch

    q, k, v, g, beta, state = case(1, (2, 2), dims)
    inputs = [x.bfloat16() for x in (q, k, v)] + [g.float(), beta.bfloat16(), state.float()]
    assert_compiles(step_launch, lambda: step_launch.step_op(*inputs, 0.1, True), arch)
