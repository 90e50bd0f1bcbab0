"""Correctness before timing: each raises Red, so a wrong result has no time.

Each raises Red, so that a wrong result has no time.
"""

from __future__ import annotations

from typing import Any

import torch
from common import Red
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.reference import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import NAMES, allowed, case, error, results, self_test

# Several times what bfloat16 costs (on a CPU 0.007, 0.025 and 0.012); a miscompiled kernel is off by a tenth or more.
LAYER_LIMIT, MODEL_LIMIT, STEP_LIMIT = 0.04, 0.1, 0.1
# Likewise: on a CPU 0.004 and 0.002.
ATTENTION_LIMIT, LOG_PROBS_LIMIT = 0.02, 0.02


def delta_rule(device: str) -> None:
    wrong = list(self_test(device))
    if wrong:
        raise Red(wrong[0])


def error_of(rule: Any, device: str) -> str:
    """What a rule gets wrong beyond bfloat16's own error, each with its relative L2 to the float64 reference."""
    inputs = case([0, 63, 200], (2, 2), (96, 192), "typical", torch.bfloat16)
    true = results(gated_delta_rule_reference, *inputs)
    limits = allowed(*inputs, true, torch.bfloat16)
    got = results(rule, *inputs, torch.bfloat16, device)
    errors = [(name, error(x, t), limit) for name, x, t, limit in zip(NAMES, got, true, limits)]
    off = [f"{name} off by {size:.0e}" for name, size, limit in errors if not size <= limit]
    return ", ".join(off) or "results right"


def delta_layer(config: Any) -> Any:
    """One of random weights, laid flat."""
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    from hybrid_ft.hybrid_model.families.known import family_of
    from hybrid_ft.hybrid_model.lay_flat import swap_classes

    made = OlmoHybridGatedDeltaNet(config, 0)
    swap_classes(made, family_of(config))
    return made


def layer(config: Any, device: str) -> None:
    """A delta layer in bfloat16 on the device against itself in float64 on the CPU, over documents of 70 and 60
    tokens."""
    from hybrid_ft.hybrid_model.door.layout import build_layout

    torch.manual_seed(0)
    tested = narrow(delta_layer(config))
    true = delta_layer(config).double()
    true.load_state_dict(tested.state_dict())
    x = torch.randn(130, config.hidden_size).bfloat16()
    up = torch.randn(130, config.hidden_size).bfloat16()
    tested.to(device)
    got, wanted = (
        _output_and_gradients(side, build_layout([70, 60], device=where), x.to(where, dtype), up.to(where, dtype))
        for side, where, dtype in ((tested, device, torch.bfloat16), (true, "cpu", torch.float64))
    )
    for name, value in got.items():
        size = error(value, wanted[name].detach())
        if not size <= LAYER_LIMIT:
            raise Red(f"layer: {name} is off by {size:.1e}, more than {LAYER_LIMIT}")


def _output_and_gradients(side: Any, layout: Any, x: Tensor, up: Tensor) -> dict[str, Tensor]:
    x.requires_grad_()
    weights = {
        name: p for name, p in side.named_parameters() if name in ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    }
    o = side(x.unsqueeze(0), layout).squeeze(0)
    grads = torch.autograd.grad(o, [x, *weights.values()], up)
    return {"output": o, "gradient of x": grads[0]} | {f"gradient of {n}": g for n, g in zip(weights, grads[1:])}


def attention(device: str) -> None:
    """Segments' attention in bfloat16 on the device against its definition in float64, the last
    two after one prompt."""
    from hybrid_ft.hybrid_model.door.layout import build_layout
    from hybrid_ft.hybrid_model.layers.attention import segment_attention

    layout, scale = build_layout([150, 70, 40, 30], [-1, -1, 1, 1]), 128**-0.5
    segment = torch.arange(4).repeat_interleave(torch.tensor(layout.lengths))
    sees = torch.zeros(4, 4, dtype=torch.bool)
    for s, history in enumerate(layout.ancestors):
        sees[s, list(history)] = True
    hidden = ~sees[segment][:, segment].tril()
    torch.manual_seed(0)
    numbers = [torch.randn(len(segment), 2, 128).bfloat16() for _ in range(4)]

    def true(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)

    def rule(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return segment_attention(q, k, v, layout.to(q.device), scale)

    _compare("attention", rule, true, numbers, ("o", "dq", "dk", "dv"), device, ATTENTION_LIMIT)


def log_probs(device: str) -> None:
    """Token log-probabilities in bfloat16 on the device against the definition in float64; on a GPU in two chunks."""
    from hybrid_ft.kernels.token_log_probs import token_log_probs, token_log_probs_reference

    torch.manual_seed(0)
    numbers = [torch.randn(4500, 64), torch.randn(1000, 64) / 4, torch.randn(4500)]
    targets = torch.randint(1000, (4500,))

    def of(function: Any) -> Any:
        return lambda hidden, weight: function(hidden, weight, targets.to(hidden.device))[0]

    rules = of(token_log_probs), of(token_log_probs_reference)
    names = ("log p", "dhidden", "dweight")
    _compare("token log-probabilities", *rules, [x.bfloat16() for x in numbers], names, device, LOG_PROBS_LIMIT)


def _compare(
    what: str, rule: Any, true: Any, numbers: list[Tensor], names: tuple[str, ...], device: str, limit: float
) -> None:
    """A rule's output and gradients on the device against the true ones in float64; the last number is the output's
    gradient."""
    results = []
    for function, where, dtype in ((rule, device, numbers[0].dtype), (true, "cpu", torch.float64)):
        *leaves, up = (x.to(where, dtype) for x in numbers)
        o = function(*(leaf.requires_grad_() for leaf in leaves))
        results.append([o.detach(), *torch.autograd.grad(o, leaves, up.to(o.dtype))])
    for name, got, wanted in zip(names, *results):
        size = error(got.cpu(), wanted)
        if not size <= limit:
            raise Red(f"{what}: {name} is off by {size:.1e}, more than {limit}")


def model(preset: str, device: str) -> None:
    """Two layers of the preset's width, bfloat16 on the device against float32 on the CPU: logits and all gradients."""
    from transformers import OlmoHybridForCausalLM

    from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
    from hybrid_ft.hybrid_model.lay_flat import lay_flat

    config = preset_config(preset)
    config.update({"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "vocab_size": 512})
    config.update({"pad_token_id": None, "eos_token_id": None})
    torch.manual_seed(0)
    tested = narrow(lay_flat(OlmoHybridForCausalLM(config)))
    true = lay_flat(OlmoHybridForCausalLM(config)).float()
    true.load_state_dict(tested.state_dict())
    ids = torch.randint(512, (2, 70))
    got, wanted = (_logits_and_gradient(m, ids.to(w)) for m, w in ((tested.to(device), device), (true, "cpu")))
    for name, x, t in zip(("logits", "gradient"), got, wanted):
        size = error(x, t.double())
        if not size <= MODEL_LIMIT:
            raise Red(f"model: {name} is off by {size:.1e}, more than {MODEL_LIMIT}")


def _logits_and_gradient(side: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    result = side(input_ids=ids, labels=ids, use_cache=False)
    result.loss.backward()
    gradient = torch.cat([p.grad.flatten().float().cpu() for p in side.parameters() if p.grad is not None])
    return result.logits.detach().float().cpu(), gradient


@torch.no_grad()
def cached_step(side: Any, device: str, vocabulary: int) -> None:
    """The logits of a token after a filled cache against those of the whole row."""
    ids = torch.randint(2, vocabulary, (2, 33), device=device)
    whole = side(input_ids=ids, use_cache=False).logits[:, -1]
    past = side(input_ids=ids[:, :-1], use_cache=True).past_key_values
    step = side(input_ids=ids[:, -1:], past_key_values=past, use_cache=True).logits[:, -1]
    size = error(step, whole.cpu().double())
    if not size <= STEP_LIMIT:
        raise Red(f"decoding: a cached step's logits are off by {size:.1e}, more than {STEP_LIMIT}")


def narrow(module: Any) -> Any:
    """To bfloat16, but for what stands in an exponent, which stays as it is loaded: float32."""
    module.bfloat16()
    for name, parameter in module.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    return module
