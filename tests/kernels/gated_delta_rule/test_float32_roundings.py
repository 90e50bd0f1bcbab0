"""What float32 is expected to be off by in dg is what it is off by, and no fault is as small."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from delta_rule_interpreted import DG, Inputs, is_rounded
from delta_rule_roundings import expected_errors_of_dg
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference, rounding
from hybrid_ft.kernels.gated_delta_rule.self_test import case, reordered, results

GATES = pytest.mark.parametrize(
    "gate", ["typical", *(pytest.param(gate, marks=pytest.mark.kernels) for gate in ("open", "closed", "some closed"))]
)


@cache
def made(gate: str) -> tuple[Inputs, Tensor, Tensor]:
    """Inputs, dg and what it is expected to be off by: a chunk and a token of heads of 16, in whose dg most cancels."""
    inputs = case([0, 65 if gate != "typical" else 30], (1, 1), (16, 16), gate, seed=64)
    return inputs, results(gated_delta_rule_reference, *inputs)[DG], expected_errors_of_dg(*inputs)


def dg_of(inputs: Inputs) -> Tensor:
    """By the kernels' equations in torch's float32."""
    leaves, up, cu_seqlens = inputs
    return rounding.rounded_gated_delta_rule([x.float() for x in leaves], [x.float() for x in up], cu_seqlens)[DG]


@GATES
def test_torchs_own_errors_are_as_expected(gate: str) -> None:
    """In 20 orders of its sums, of which some have an element beyond one root mean square and none beyond two."""
    ((leaves, up, cu_seqlens), true, expected), generator = made(gate), torch.Generator().manual_seed(0)
    found = []
    for _ in range(20):
        by = [torch.randperm(16, generator=generator) for _ in "KV"]
        dg = dg_of((reordered(leaves, "KKV..S", *by), reordered(up, "VS", *by), cu_seqlens))
        found.append(((dg.double() - true).abs() / expected).flatten())
    assert 0.1 < float(torch.stack(found).square().mean().sqrt()) < 1
    assert 0.7 < float(torch.stack(found).max()) < 2


def tf32(x: Tensor) -> Tensor:
    return (x.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)


FAULTS: dict[str, Callable[[Any], None]] = {
    "a term's sign": lambda chunk: chunk.write.__setitem__(5, -chunk.write[5]),
    "a row's gate": lambda chunk: chunk.read_q.__setitem__(0, chunk.read_q[1]),
    "tf32 in the products with Y": lambda chunk: setattr(chunk, "y", tf32(chunk.y)),
    "tf32 in the products with S": lambda chunk: setattr(chunk, "state", tf32(chunk.state)),
    "tf32 in the products with q": lambda chunk: setattr(chunk, "q", tf32(chunk.q)),
}


@GATES
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_no_rounding(monkeypatch: pytest.MonkeyPatch, gate: str, fault: Callable[[Any], None]) -> None:
    inputs, true, expected = made(gate)
    assert is_rounded(dg_of(inputs), true, expected)

    class Wrong(rounding._Head):
        def backward(self, do: Tensor, d_state: Tensor) -> tuple[list[Tensor], Tensor]:
            if len(self.q) > 5:
                fault(self)
            return super().backward(do, d_state)

    monkeypatch.setattr(rounding, "_Head", Wrong)
    wrong = dg_of(inputs)
    monkeypatch.undo()
    assert not is_rounded(wrong, true, expected)
