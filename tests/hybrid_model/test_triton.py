"""The whole model on its Triton kernels, as it runs on a GPU: interpreted, or on the GPU at hand.

The operators' own tests see one operator each. These see what the model hands them: strided pieces of its projections,
levels of forked segments, tails and states of a cache.
"""

import copy
import os
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from transformers import OlmoHybridForCausalLM

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers import gated_delta_net, norm_and_mlp
from hybrid_ft.kernels.gated_delta_rule import op

pytest.importorskip("triton")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [
    pytest.mark.kernels if INTERPRETED else pytest.mark.gpu,
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason="no GPU: not measured"),
]


@pytest.fixture
def on_kernels(as_on_a_gpu: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Interpreted, the delta rule's kernels too take float32, as on a GPU 16 bits alone do."""
    if not INTERPRETED:
        return nullcontext
    monkeypatch.setattr(op, "on_kernels", lambda q: q.is_cuda)
    return as_on_a_gpu


@pytest.fixture
def model(make_pair: Callable) -> OlmoHybridForCausalLM:
    """On the CPU, with a layer of each kind and two value heads to a key head."""
    heads = {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "num_key_value_heads": 2}
    dims = {"linear_key_head_dim": 16, "linear_value_head_dim": 32}
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    return make_pair(**heads, **dims, **layers)[1]


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Rows of random tokens, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 61, (len(lengths), max(lengths)), generator=generator)
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def packed(lengths: list[int]) -> dict[str, torch.Tensor]:
    positions = torch.cat([torch.arange(n) for n in lengths])
    return {"input_ids": padded([len(positions)])["input_ids"], "position_ids": positions[None]}


BATCHES = {
    "packed": packed([1, 64, 5]),
    "pair": padded([17, 12]) | {"prompt_lengths": torch.tensor([9, 9]), "prompt_rows": torch.tensor([0, 0])},
}
BATCHES["pair"]["input_ids"][1, 5:14] = BATCHES["pair"]["input_ids"][0, :9]  # both begin with the prompt


def results(model: OlmoHybridForCausalLM, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Logits and every parameter's gradient, in float64 on the CPU."""
    model.zero_grad()
    logits = model(**{name: x.to(model.device) for name, x in batch.items()}, use_cache=False).logits
    generator = torch.Generator().manual_seed(1)
    logits.backward(torch.randn(logits.shape, generator=generator).to(logits))
    found = {"logits": logits.detach()} | {name: p.grad for name, p in model.named_parameters()}
    return {name: x.cpu().double() for name, x in found.items()}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_logits_and_gradients(model: OlmoHybridForCausalLM, on_kernels: Callable, batch: dict) -> None:
    """At most twice as far from float64 as the torch path in float32, or some roundings; with checkpoints the same
    bits. A gradient of a few numbers that are sums of many is held against a hundredth of the whole gradient."""
    own, true = (results(copy.deepcopy(model).to(dtype), batch) for dtype in (torch.float32, torch.float64))
    with on_kernels():
        model.to(DEVICE)
        got = results(model, batch)
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
        again = results(model, batch)
    whole = torch.stack([x.norm() for name, x in true.items() if name != "logits"]).norm()
    for name, expected in true.items():
        limit = max(2 * (own[name] - expected).norm(), 2e-6 * max(expected.norm(), 0.01 * whole))
        assert (got[name] - expected).norm() <= limit, name
        assert torch.equal(got[name], again[name]), name


def test_a_cache_and_steps(model: OlmoHybridForCausalLM, on_kernels: Callable, relative: Callable) -> None:
    """Rows that are fed in two parts and then token by token have the logits of the same rows at once."""
    batch = padded([40, 22])
    whole = model.double()(**batch, use_cache=False).logits
    with on_kernels(), torch.no_grad():
        model.float().to(DEVICE)
        cache, found = None, []
        for start, end in [(0, 20), (20, 36), *((i, i + 1) for i in range(36, 40))]:
            part = {"input_ids": batch["input_ids"][:, start:end], "attention_mask": batch["attention_mask"][:, :end]}
            part = {name: x.to(DEVICE) for name, x in part.items()}
            step = model(**part, past_key_values=cache, use_cache=True)
            cache = step.past_key_values
            found.append(step.logits.cpu())
    assert relative(torch.cat(found, 1), whole) < 1e-6


def test_a_layer_compiles_whole(model: OlmoHybridForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a break in its graph, and with the same results."""
    if INTERPRETED:  # the compiler asks its own tensors where they are, so the operators are put in place by hand
        for name, operator in operators().items():
            monkeypatch.setattr(norm_and_mlp if name == "gated_rms_norm" else gated_delta_net, name, operator)
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    layer = model.model.layers[0].linear_attn.to(DEVICE, dtype)
    layout = build_layout([5, 12], device=DEVICE)
    x = torch.randn(1, 17, 32, generator=torch.Generator().manual_seed(2)).to(DEVICE, dtype).requires_grad_()
    parameters = [x, *layer.parameters()]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    eager, whole = (torch.autograd.grad(f(x, layout).square().sum(), parameters) for f in (layer, compiled))
    assert all(torch.equal(a, b) for a, b in zip(eager, whole))


def operators() -> dict[str, Callable]:
    """What the layer calls, as on a GPU."""
    from hybrid_ft.kernels.delta_gates.gpu.launch import triton_delta_gates
    from hybrid_ft.kernels.gated_delta_rule.gpu.autograd import triton_gated_delta_rule
    from hybrid_ft.kernels.gated_rms_norm.gpu.launch import triton_gated_rms_norm
    from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv

    def rule(q, k, v, g, beta, *, cu_seqlens, initial_state, output_final_state):
        scale = q.shape[-1] ** -0.5
        return triton_gated_delta_rule(q, k, v, g, beta, cu_seqlens, initial_state, scale, True, False)

    def conv(x, weight, *, cu_seqlens, initial_tail, output_final_tail):
        return triton_short_conv(x, weight, None, cu_seqlens, initial_tail, output_final_tail)

    def gates(a, b, A_log, dt_bias, *, allow_neg_eigval):
        return triton_delta_gates(a, b, A_log, dt_bias, allow_neg_eigval)

    def norm(x, gate, weight, *, eps):
        return triton_gated_rms_norm(x, gate, weight, eps)

    return {"gated_delta_rule": rule, "short_conv": conv, "delta_gates": gates, "gated_rms_norm": norm}
