"""The self-test before training: what is compared, what it finds, and that its answer is kept."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, trusted

CPU = torch.device("cpu")


@pytest.mark.parametrize("heads", [(1, 1), pytest.param((3, 3), marks=pytest.mark.kernels), (2, 4)], ids=str)
def test_a_right_rule_passes(heads: tuple[int, int]) -> None:
    assert list(trusted.compared(heads, (16, 32), torch.float32, CPU)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_right_rule_of_mamba_2_passes(dtype: torch.dtype) -> None:
    assert list(trusted.compared((2, 4), (32, 16), dtype, CPU, mamba2=True)) == []


def test_mamba_2_with_the_correction_is_found() -> None:
    def rule(*inputs: torch.Tensor, correct: bool, **options: Any) -> Any:
        assert not correct
        return gated_delta_rule(*inputs, **options)

    assert any(": o is off by" in line for line in trusted.compared((1, 1), (16, 16), torch.float32, CPU, rule, True))


def test_a_rule_that_is_wrong_in_one_head_is_found() -> None:
    """As a miscompiled kernel is: o right, one head's gradient of k a tenth off."""

    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, k: torch.Tensor) -> torch.Tensor:
            return k.clone()

        @staticmethod
        def backward(ctx: Any, dk: torch.Tensor) -> torch.Tensor:
            dk = dk.clone()
            dk[:, :, 1] *= 1.1
            return dk

    def rule(q: torch.Tensor, k: torch.Tensor, *rest: torch.Tensor, **options: Any) -> Any:
        return gated_delta_rule(q, Off.apply(k), *rest, **options)

    found = list(trusted.compared((3, 3), (16, 32), torch.float32, CPU, rule))
    assert len(found) == len(trusted.CASES)
    assert all(": dk is off by 1.0e-01, more than" in line for line in found)


def test_a_rule_that_does_not_repeat_is_found() -> None:
    calls = iter(range(100))

    def rule(*inputs: torch.Tensor, **options: Any) -> Any:
        o, state = gated_delta_rule(*inputs, **options)
        return o * (1 + next(calls) * 2**-22), state

    assert any(
        "o differs from one run to the next" in line
        for line in trusted.compared((1, 1), (16, 16), torch.float32, CPU, rule)
    )


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    pytest.importorskip("triton")
    properties = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return properties


def test_the_answer_is_kept_for_this_gpu_and_these_libraries(
    card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(trusted, "compared", lambda *given, **_: asked.append(given) or iter(["dk is off"]))
    given = (30, 30), (96, 192), torch.bfloat16, CPU, tmp_path / "new"
    assert trusted.faults(*given) == trusted.faults(*given) == ["dk is off"]
    assert len(asked) == 1
    trusted.faults(*given, mamba2=True)
    assert len(asked) == 2
    monkeypatch.setattr(torch, "__version__", "9.9")
    trusted.faults(*given)
    monkeypatch.setenv("TRITON_PTXAS_PATH", "ptxas")
    trusted.faults(*given)
    card.name = "NVIDIA H100"
    trusted.faults(*given)
    assert len(asked) == 5


def test_a_folder_that_cannot_be_written_costs_the_time_alone(
    card: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trusted, "compared", lambda *given, **_: iter([]))
    (tmp_path / "file").write_text("")
    assert trusted.faults((1, 1), (16, 16), torch.float32, CPU, tmp_path / "file") == []
