"""Every kernel that Olmo Hybrid 7B launches, as Triton itself compiles it for an H100 and hands it to the driver.

The operators' own tests compile them for arguments of their own; the model's dtypes, strides and constants are what
counts, and how Triton passes them on: named tuples, what is None, what is compiled in. Two layers of the true width and
the log-probabilities run in bfloat16, forward and backward on a pair and one decoded token, with products of zeros.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OlmoHybridForCausalLM

from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.layers import attention, projections
from hybrid_ft.kernels.token_log_probs import token_log_probs

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver, and a GPU: make test-gpu"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="Triton launches through C that it compiles; there is no cc"),
]

WORDS = 512
# Bytes a thread, in the kernels where that buys a second program on a multiprocessor.
SPILLED, SPILLING = 96, {"query_kernel", "key_kernel", "backward_kernel"}


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


def test_all_arrives_at_the_driver_and_little_spills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_on_a_gpu: Callable
) -> None:
    from kernel_counts import counts
    from launched import no_gpu

    from hybrid_ft.kernels.gated_delta_rule.gpu import call
    from hybrid_ft.kernels.token_log_probs.gpu import launch

    monkeypatch.setattr(projections, "_part", lambda layer, x: None)  # which would multiply several at once
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: Zeros.apply(x, self.weight))
    monkeypatch.setattr(attention, "varlen_attention", lambda q, k, v, *_: q + 0 * (k.sum() + v.sum()))
    monkeypatch.setattr(launch, "_add_product", lambda total, a, b: None)
    with no_gpu(tmp_path) as launches, as_on_a_gpu():
        run(seven_b())
        monkeypatch.setattr(call, "SHORTEST", 1)
        monkeypatch.setattr(call, "PROGRAMS", 2**30)
        run(seven_b())
    names = {launch.kernel.__name__ for launch in launches}
    assert {"forward_kernel", "backward_kernel", "query_kernel", "initial_tail_kernel", "delta_step_kernel"} <= names
    assert {"summary_kernel", "join_kernel", "summary_backward_kernel"} <= names
    compiled = {}
    for kernel, program, config, arrived, given in launches:
        assert arrived == given, kernel.__name__
        assert config.x > 0 and config.y == config.z == 1
        assert config.threads == 32 * program.metadata.num_warps <= 1024
        assert config.shared == program.metadata.shared <= 227 * 1024
        compiled[program.hash] = kernel.__name__, program
    found = {name: counts(program).spilled for name, program in compiled.values()}
    assert {name: n for name, n in found.items() if n > (SPILLED if name in SPILLING else 0)} == {}


def seven_b() -> OlmoHybridForCausalLM:
    """Two layers and a small vocabulary, weights as they happen to lie in memory."""
    config = preset_config("7B")
    config.update({"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "vocab_size": WORDS})
    config.update({"pad_token_id": None, "eos_token_id": None})
    with torch.device("meta"):
        model = lay_flat(OlmoHybridForCausalLM(config)).bfloat16()
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    return model.to_empty(device="cpu")


def run(model: OlmoHybridForCausalLM) -> None:
    ids = torch.randint(2, WORDS, (2, 150))
    ids[1, :80] = ids[0, :80]
    pair = {"prompt_lengths": torch.tensor([80, 80]), "prompt_rows": torch.tensor([0, 0])}
    hidden = model.model(input_ids=ids, **pair, use_cache=False).last_hidden_state
    token_log_probs(hidden.flatten(0, 1), model.lm_head.weight, ids.flatten())[0].sum().backward()
    with torch.no_grad():
        cache = model(input_ids=ids[:, :64], use_cache=True).past_key_values
        model(input_ids=ids[:, 64:65], past_key_values=cache, use_cache=True)
