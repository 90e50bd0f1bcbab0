"""Calls whose launches are recorded, on tensors that hold nothing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from sizes import Sizes


class _Zeros(torch.autograd.Function):
    """A linear layer that costs nothing."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return x.new_empty(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)


def delta_rule(dry: bool) -> None:
    for sequences in (8, 1):
        forward_and_backward(*Sizes(dry).delta_rule_inputs(sequences, "cpu"))


def forward_and_backward(inputs: list[torch.Tensor], do: torch.Tensor, edges: torch.Tensor) -> None:
    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule

    o = gated_delta_rule(*inputs, cu_seqlens=edges)[0]
    torch.autograd.grad(o, inputs, do)


def self_test(dry: bool) -> None:
    from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
    from hybrid_ft.kernels.gated_delta_rule.self_test import CASES, case, results

    dtype = torch.bfloat16  # float32 has no kernels
    for edges, heads, dims, gate, options in CASES[: 1 if dry else None]:
        results(gated_delta_rule, *case(edges, (heads, heads), dims, gate, dtype), dtype, **options)
    if not dry:  # what the quick tests launch beside these
        for keep in (False, True):
            given = case([0, 63, 130], (2, 2), (96, 192), "typical", dtype)
            results(gated_delta_rule, *given, dtype, keep_states=keep)


def layer_kernels(dry: bool) -> None:
    for _, leaves, call in Sizes(dry).layer_kernels("cpu"):
        y = call()
        torch.autograd.grad(y, leaves, torch.empty_like(y))


def model(dry: bool) -> None:
    """Two layers of the 7B's width and a small vocabulary: a pair, packed documents, a decoded token."""
    from transformers import OlmoHybridForCausalLM

    from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
    from hybrid_ft.hybrid_model.lay_flat import lay_flat
    from hybrid_ft.hybrid_model.layers import attention
    from hybrid_ft.kernels.token_log_probs import token_log_probs
    from hybrid_ft.kernels.token_log_probs.gpu import launch

    config = preset_config("tiny" if dry else "7B")
    config.update({"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "vocab_size": 512})
    config.update({"pad_token_id": None, "eos_token_id": None})
    with torch.device("meta"):
        whole = lay_flat(OlmoHybridForCausalLM(config)).bfloat16()
    for name, parameter in whole.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    whole.to_empty(device="cpu")
    with (
        mock.patch.object(torch.nn.Linear, "forward", lambda self, x: _Zeros.apply(x, self.weight)),
        mock.patch.object(attention, "varlen_attention", lambda q, k, v, *_: q + 0 * (k.sum() + v.sum())),
        mock.patch.object(launch, "_add_product", lambda total, a, b: None),
    ):
        ids = torch.randint(2, 512, (2, 160))
        ids[1, :80] = ids[0, :80]
        pair = {"prompt_lengths": torch.tensor([80, 80]), "prompt_rows": torch.tensor([0, 0])}
        hidden = whole.model(input_ids=ids, **pair, use_cache=False).last_hidden_state
        token_log_probs(hidden.flatten(0, 1), whole.lm_head.weight, ids.flatten())[0].sum().backward()
        with torch.no_grad():
            for rows in (1, 2):
                cache = whole(input_ids=ids[:rows, :64], use_cache=True).past_key_values
                whole(input_ids=ids[:rows, 64:65], past_key_values=cache, use_cache=True)


def quickstart(dry: bool) -> None:
    """The bundled base as it is trained, float32 weights and bfloat16 arithmetic, and the self-test before that."""
    import hybrid_ft
    from hybrid_ft.hybrid_model.layers import attention
    from hybrid_ft.kernels.gated_delta_rule.trusted import compared

    whole = hybrid_ft.load("tiny", dtype="float32")
    ids = torch.randint(2, 1000, (1, 2048 if not dry else 64))
    positions = torch.arange(ids.shape[1])[None] % 128
    with mock.patch.object(attention, "varlen_attention", lambda q, k, v, *_: q + 0 * (k.sum() + v.sum())):
        for dtype in (torch.float32, torch.bfloat16):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                hidden = whole.to(dtype).model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
            hidden.float().sum().backward()
    config = whole.config
    heads = config.linear_num_key_heads, config.linear_num_value_heads
    dims = config.linear_key_head_dim, config.linear_value_head_dim
    list(compared(heads, dims, torch.bfloat16, torch.device("cpu")))


def rivals(dry: bool) -> None:
    """flash-linear-attention's op on packed sequences, as one of ours, and on rows, as transformers calls it."""
    import theirs

    rule = theirs.delta_rule()
    for sequences in (8, 1):
        inputs, do, edges = Sizes(dry).delta_rule_inputs(sequences, "cpu")
        torch.autograd.grad(rule(*inputs, cu_seqlens=edges)[0], inputs, do)
        rows = [x.detach().view(sequences, -1, *x.shape[2:]).requires_grad_() for x in inputs]
        torch.autograd.grad(rule(*rows)[0], rows, do.view(sequences, -1, *do.shape[2:]))
