"""Every kernel that Olmo Hybrid 7B launches, compiled ahead of time for an H100 as the model launches it.

The operators' own tests compile them for arguments of their own; the model's dtypes, strides and constants are what
counts. Two layers of the true width run in bfloat16, forward and backward on a pair and one decoded token, with products
of zeros and nothing launched.
"""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybrid_ft.hybrid_model import attention
from hybrid_ft.hybrid_model.modeling import OlmoHybridForCausalLM
from hybrid_ft.hybrid_model.presets import preset_config

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]


class Zeros(torch.autograd.Function):
    """A linear layer that costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_zeros(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return torch.zeros_like(x), torch.zeros_like(weight)


def test_nothing_spills(
    monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: Callable, build: Callable[[Any, int], Any]
) -> None:
    launched: dict[str, Any] = {}

    def keep(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        constants = [x if isinstance(x, (int, bool)) else getattr(x, "dtype", None) for x in args]
        key = f"{kernel.fn.__module__}.{kernel.__name__}{constants}{options}"
        launched[key] = SimpleNamespace(kernel=kernel, launch=(args, options))

    monkeypatch.setattr(triton.JITFunction, "run", keep)
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: Zeros.apply(x, self.weight))
    monkeypatch.setattr(attention, "_varlen", lambda q, k, v, *_: q + 0 * (k.sum() + v.sum()))
    with as_on_a_gpu():
        run(seven_b())
    names = {key.split("[")[0].rsplit(".", 1)[1] for key in launched}
    assert {"forward_kernel", "backward_kernel", "query_kernel", "activation_kernel", "delta_step_kernel"} <= names
    spilled = {key: bytes for key, kernel in launched.items() if (bytes := build(kernel, 90).spilled)}
    assert not spilled


def seven_b() -> OlmoHybridForCausalLM:
    """Two layers and a small vocabulary, weights as they happen to lie in memory."""
    config = preset_config("7B")
    config.update({"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "vocab_size": 512})
    config.update({"pad_token_id": None, "eos_token_id": None})
    with torch.device("meta"):
        model = OlmoHybridForCausalLM(config).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    return model.to_empty(device="cpu")


def run(model: OlmoHybridForCausalLM) -> None:
    ids = torch.randint(2, 512, (2, 70))
    ids[1, :40] = ids[0, :40]
    pair = {"prompt_lengths": torch.tensor([40, 40]), "prompt_rows": torch.tensor([0, 0])}
    model(input_ids=ids, **pair, use_cache=False).logits.float().sum().backward()
    with torch.no_grad():
        cache = model(input_ids=ids[:, :64], use_cache=True).past_key_values
        model(input_ids=ids[:, 64:65], past_key_values=cache, use_cache=True)
