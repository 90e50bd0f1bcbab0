"""The step on a CPU: its definition, its parts, and what it refuses."""

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.delta_gates import delta_gates
from hybrid_ft.kernels.delta_step import delta_step, delta_step_reference
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_step
from hybrid_ft.kernels.short_conv import short_conv, short_conv_step

H, HV, K, V, W = 2, 4, 6, 5, 4
WIDTHS = [H * K, H * K, HV * V]
D = sum(WIDTHS)


def case(B: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(B)
    shapes = {"x": (B, D), "a": (B, HV), "b": (B, HV), "tail": (B, W - 1, D), "state": (B, HV, K, V)}
    shapes |= {"conv_weight": (D, W), "A_log": (HV,), "dt_bias": (HV,)}
    return {name: torch.randn(shape, generator=gen, dtype=torch.float64).to(dtype) for name, shape in shapes.items()}


def heads(y: Tensor) -> list[Tensor]:
    return [x.unflatten(-1, (-1, d)) for x, d in zip(y.split(WIDTHS, -1), (K, K, V))]


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("B", [0, 1, 3])
def test_definition(B: int, twice: bool) -> None:
    inputs = case(B)
    before = {name: x.clone() for name, x in inputs.items()}
    got = delta_step(**inputs, allow_neg_eigval=twice)
    assert all(torch.equal(x, before[name]) for name, x in inputs.items())
    if not B:
        assert [x.shape for x in got] == [(0, HV, V), (0, W - 1, D), (0, HV, K, V)]
        return
    for x, y in zip(got, delta_step_reference(**inputs, allow_neg_eigval=twice)):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_its_parts_bit_for_bit(dtype: torch.dtype) -> None:
    inputs = case(3, dtype) | {"state": case(3)["state"].float()}
    y, tail = short_conv_step(inputs["x"], inputs["tail"], inputs["conv_weight"])
    g, beta = delta_gates(*(inputs[name] for name in ("a", "b", "A_log", "dt_bias")))
    o, state = gated_delta_rule_step(*heads(y), g, beta, inputs["state"])
    for got, part in zip(delta_step(**inputs), (o, tail, state)):
        assert got.dtype == part.dtype and torch.equal(got, part)


def test_steps_are_the_layer_over_a_segment() -> None:
    inputs = case(9)
    weight, A_log, dt_bias = (inputs[name] for name in ("conv_weight", "A_log", "dt_bias"))
    tail, state = inputs["tail"][:1], inputs["state"][:1]
    y, final_tail = short_conv(inputs["x"], weight, initial_tail=tail, output_final_tail=True)
    gates = delta_gates(inputs["a"], inputs["b"], A_log, dt_bias)
    o, final_state = gated_delta_rule(
        *(t[None] for t in (*heads(y), *gates)), initial_state=state, output_final_state=True
    )
    outputs = []
    for t in range(9):
        now = (inputs[name][t : t + 1] for name in ("x", "a", "b"))
        o_t, tail, state = delta_step(*now, tail, state, weight, A_log, dt_bias)
        outputs.append(o_t)
    torch.testing.assert_close(torch.cat(outputs), o[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(tail, final_tail)
    torch.testing.assert_close(state, final_state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, D, 1)}, "x: got (2, 44, 1) torch.float32; it must be float with shape [B, D]"),
        ({"x": torch.zeros(2)}, "x: got (2,) torch.float32; it must be float with shape [B, D]"),
        ({"tail": torch.zeros(2, 2, D)}, "tail: got (2, 2, 44) torch.float32; it must be float with shape (2, 3, 44)"),
        ({"b": torch.zeros(2, 3)}, "b: got shape (2, 3); it must be a's, (2, 4)"),
        ({"dt_bias": torch.zeros(3)}, "dt_bias: got shape (3,); it must be a's last size, (4,)"),
        ({"state": torch.zeros(2, 4, 6)}, "state: got shape (2, 4, 6); it must be [B, HV, K, V]"),
        ({"state": torch.zeros(2, 4, 0, 5)}, "state: got shape (2, 4, 0, 5); it must be [B, HV, K, V]"),
        ({"state": torch.zeros(1, 4, 6, 5)}, "state: got (1, 4, 6, 5) torch.float32; it must be float with shape (2,"),
        ({"state": torch.zeros(2, 2, 6, 5)}, "a: got shape (2, 4); it must be the state's [B, HV], (2, 2)"),
        (
            {"state": torch.zeros(2, 4, 5, 5)},
            "x: got 44 channels; they must be 2 H K + HV V, for a state of HV, K, V =",
        ),
        (
            {"state": torch.zeros(2, 4, 4, 5)},
            "x: got 44 channels; they must be 2 H K + HV V, for a state of HV, K, V =",
        ),
        ({"state": torch.zeros(2, 4, 6, 11)}, "x: got 44 channels; they must be 2 H K + HV V, for a state of HV, K, V"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError) as error:
        delta_step(**case(2, torch.float32) | change)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
