"""A GPU that computes a model's delta rule wrongly stops the run with one line."""

from types import SimpleNamespace

import pytest
import torch

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.hybrid_model import gpu_trust
from hybrid_ft.kernels.gated_delta_rule import trusted


class Mixer(torch.nn.Module):
    def __init__(self, heads: int, value_heads: int) -> None:
        super().__init__()
        self.num_k_heads, self.num_v_heads, self.head_k_dim, self.head_v_dim = heads, value_heads, 96, 192


def test_every_size_of_head_is_asked_for_once() -> None:
    model = torch.nn.Sequential(Mixer(2, 2), torch.nn.Linear(1, 1), Mixer(2, 2), Mixer(2, 4))
    assert gpu_trust.delta_heads(model) == {((2, 2), (96, 192)), ((2, 4), (96, 192))}


class Mamba2(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.n_groups, self.num_heads, self.ssm_state_size, self.head_dim = 2, 4, 128, 64


def test_a_cpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(trusted, "faults", lambda *given, **_: asked.append(given) or ["wrong"])
    gpu_trust.check_gpu(torch.nn.Sequential(Mixer(2, 2), torch.nn.Linear(1, 1)), torch.float32)
    assert asked == []


def test_a_fault_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    model = torch.nn.Sequential(Mixer(2, 2), Mamba2())
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr(model, "parameters", lambda: iter([on_gpu]))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    asked = []
    monkeypatch.setattr(trusted, "faults", lambda *given, mamba2: asked.append((*given, mamba2)) or [])
    gpu_trust.check_gpu(model, torch.bfloat16)
    assert asked == [
        ((2, 2), (96, 192), torch.bfloat16, on_gpu.device, False),
        ((2, 4), (128, 64), torch.bfloat16, on_gpu.device, True),
    ]
    monkeypatch.setattr(
        trusted, "faults", lambda *given, **_: ["bfloat16: dk is off by 3e-01, more than 1e-02", "more"]
    )
    with pytest.raises(InputError, match="NVIDIA H200 with triton .*dk is off by 3e-01.*2 in all") as raised:
        gpu_trust.check_gpu(model, torch.bfloat16)
    assert raised.value.status == ENVIRONMENT and "\n" not in str(raised.value)
