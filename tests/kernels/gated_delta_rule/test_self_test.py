"""The self-test finds what is wrong, and passes what is right."""

import pytest
import torch

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_reference, self_test
from hybrid_ft.kernels.gated_delta_rule.self_test import NAMES, allowed, case, error, reordered, results


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr(self_test, "CASES", [([0, 1, 30], 2, (16, 32), "typical", {})])


def test_a_right_rule_passes_and_says_so(one_case, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["self_test", "cpu"])
    assert self_test.main() == 0
    assert capsys.readouterr().out == "gated delta rule on cpu: outputs, gradients and repeatability are right\n"


def test_a_gradient_that_is_off_is_named(one_case, monkeypatch, capsys):
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, k):
            return k.clone()

        @staticmethod
        def backward(ctx, dk):
            return 1.05 * dk

    monkeypatch.setattr(
        self_test, "gated_delta_rule", lambda q, k, *rest, **more: gated_delta_rule(q, Off.apply(k), *rest, **more)
    )
    monkeypatch.setattr("sys.argv", ["self_test", "cpu"])
    assert self_test.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(": dk is off by " in line for line in lines)


def test_a_result_that_changes_from_run_to_run_is_named(one_case, monkeypatch):
    calls = iter(range(9))

    def rule(*given, **more):
        o, state = gated_delta_rule(*given, **more)
        return o * (1 + next(calls) * 2**-23), state

    monkeypatch.setattr(self_test, "gated_delta_rule", rule)
    found = list(self_test.self_test("cpu"))
    assert any(
        line.startswith("torch.float32") and line.endswith(": o differs from one run to the next") for line in found
    )
    assert not [line for line in found if "final_state" in line]


def test_what_is_allowed_is_the_dtypes_own_error():
    """Float32 by the reference's own, 16 bits by the rounding of its operands: some thousand times as much."""
    inputs = case([0, 40], (2, 2), (16, 32), dtype=torch.bfloat16)
    true = results(gated_delta_rule_reference, *inputs)
    single, half = (allowed(*inputs, true, dtype) for dtype in (torch.float32, torch.bfloat16))
    assert all(1e-7 < one < 1e-5 for one in single), single
    assert all(2e-4 < one < 5e-2 for name, one in zip(NAMES, half, strict=True) if name in ("o", "dq", "dk", "dv")), (
        half
    )


def test_an_order_of_the_dimensions_changes_no_result():
    leaves, up, cu_seqlens = case([0, 20], (1, 1), (16, 32))
    by_k, by_v = torch.randperm(16), torch.randperm(32)
    got = results(
        gated_delta_rule_reference,
        reordered(leaves, "KKV..S", by_k, by_v),
        reordered(up, "VS", by_k, by_v),
        cu_seqlens,
    )
    wanted = reordered(results(gated_delta_rule_reference, leaves, up, cu_seqlens), "VSKKV..S", by_k, by_v)
    assert max(error(x, y) for x, y in zip(got, wanted, strict=True)) < 1e-13


def test_an_error_is_relative_to_the_whole():
    assert error(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)
    assert error(torch.empty(0), torch.empty(0)) == 0.0
