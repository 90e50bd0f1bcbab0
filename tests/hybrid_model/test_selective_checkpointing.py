"""Selective checkpointing gives the same gradients, and runs attention once."""

import importlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import OlmoHybridForCausalLM

from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.selective_checkpointing import (
    KEPT,
    leave_out,
    mark_no_inputs,
    offload_inputs,
    selective_contexts,
)

PRODUCTS = {"aten::mm", "aten::addmm", "aten::addmm_"}
ATTENTION = "aten::_scaled_dot_product_flash_attention_for_cpu"


class Calls(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return lay_flat(OlmoHybridForCausalLM(preset_config("tiny"))).train()


def gradients(model, how):
    """Gradients of a step, and the operators that it ran."""
    if how is not None:
        model.gradient_checkpointing_enable({"use_reentrant": False, **how})
    tokens = torch.randint(3, 100, (1, 60), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(25), torch.arange(35)])[None]
    model.zero_grad()
    with Calls() as calls:
        model(input_ids=tokens, position_ids=positions, labels=tokens).loss.backward()
    if how is not None:
        model.gradient_checkpointing_disable()
    return [p.grad.clone() for p in model.parameters()], calls.names


def test_the_same_gradients_and_attention_once(model):
    want, once = gradients(model, None)
    whole, twice = gradients(model, {})
    got, found = gradients(model, {"context_fn": selective_contexts})
    assert all(map(torch.equal, got, want)) and all(map(torch.equal, whole, want))
    assert once.count(ATTENTION) > 0
    assert twice.count(ATTENTION) == 2 * once.count(ATTENTION)
    assert found.count(ATTENTION) == once.count(ATTENTION)


@pytest.mark.parametrize(("numbers", "again"), [({0}, 1), ({3}, 0), ({0, 1, 2, 3}, 0)], ids=str)
def test_a_layer_that_is_left_out_runs_once(model, numbers, again):
    """The tiny model's last layer of four is its attention; the gradients are the same bits."""
    assert [kind == "full_attention" for kind in model.config.layer_types] == [False, False, False, True]
    want, once = gradients(model, None)
    leave_out(model, numbers)
    for _ in range(2):  # a trainer turns it on more than once
        got, found = gradients(model, {})
        assert all(map(torch.equal, got, want))
        assert found.count(ATTENTION) == (1 + again) * once.count(ATTENTION)
    assert [layer.gradient_checkpointing for layer in model.model.layers] == [False] * 4


def test_layers_are_left_out_below_an_adapter_and_of_any_family(model):
    from transformers import AutoModelForCausalLM, Olmo3Config

    from hybrid_ft.hybrid_model.adapters import add_lora

    config = Olmo3Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, vocab_size=64, pad_token_id=0)
    for inner in (model, AutoModelForCausalLM.from_config(config)):
        adapted = add_lora(inner, rank=2)
        leave_out(adapted, {1})
        adapted.gradient_checkpointing_enable({"use_reentrant": False})
        on = [layer.gradient_checkpointing for layer in inner.model.layers]
        assert on == [number != 1 for number in range(len(on))]


def test_what_is_kept_is_what_there_is():
    """torch's own names, and ours where Triton is: a renamed operator would silently be computed again."""
    pytest.importorskip("triton")
    importlib.import_module("hybrid_ft.kernels.gated_delta_rule.gpu.autograd")
    importlib.import_module("torch.nn.attention.varlen")
    for name in KEPT:
        space, operator = name.split("::")
        if not space.startswith("flash_attn"):
            assert hasattr(getattr(torch.ops, space), operator), name


@pytest.mark.parametrize("how", [None, "full", "selective", "offload"])
def test_backward_ends_at_the_first_layer_that_is_trained(how):
    """Adapters on the last two layers of four: the same bits with and without a gradient of the embeddings, and without it
    no product of the layers below."""
    from hybrid_ft.hybrid_model.adapters import add_lora

    torch.manual_seed(0)
    plain = lay_flat(OlmoHybridForCausalLM(preset_config("tiny"))).train()
    model = add_lora(plain, rank=2, layers=[2, 3])
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    if how == "offload":
        offload_inputs(model)
    if how is not None:
        contexts = {"context_fn": selective_contexts} if how == "selective" else {}
        plain.gradient_checkpointing_enable({"use_reentrant": False, **contexts})
    plain.enable_input_require_grads()
    tokens = torch.randint(3, 100, (1, 60), generator=torch.Generator().manual_seed(1))

    def step():
        model.zero_grad()
        with Calls() as calls:
            model(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad], sum(
            name in PRODUCTS for name in calls.names
        )

    want, products = step()
    mark_no_inputs(model)
    assert not plain.get_input_embeddings()._forward_hooks
    got, fewer = step()
    assert all(map(torch.equal, got, want))
    below = [
        module for layer in plain.model.layers[:2] for module in layer.modules() if isinstance(module, torch.nn.Linear)
    ]
    assert len(below) == 20 and fewer <= products - len(below)
    assert not plain.get_input_embeddings()(tokens).requires_grad
    plain.enable_input_require_grads()  # as PEFT or a user may: it holds again
    assert plain.get_input_embeddings()(tokens).requires_grad
    plain.disable_input_require_grads()
