"""Layers' inputs that wait in the host's memory: the same gradients, and nothing else goes there."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import OlmoHybridForCausalLM

from hybrid_ft.hybrid_model import selective_checkpointing
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.selective_checkpointing import offload_inputs


def model(lora):
    torch.manual_seed(0)
    plain = lay_flat(OlmoHybridForCausalLM(preset_config("tiny"))).train()
    return add_lora(plain, rank=2) if lora else plain


def gradients(model):
    tokens = torch.randint(3, 100, (1, 60), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(25), torch.arange(35)])[None]
    model.zero_grad()
    model(input_ids=tokens, position_ids=positions, labels=tokens).loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("lora", [False, True])
def test_the_gradients_are_the_same_bits(lora, monkeypatch):
    seen = []

    def counted(pin_memory):
        def pack(x):
            seen.append(tuple(x.shape))
            return x.clone()  # elsewhere, as the host's copy is

        assert pin_memory
        return saved_tensors_hooks(pack, lambda x: x.clone())

    want = gradients(model(lora))
    offloaded = model(lora)
    offload_inputs(offloaded)
    plain = offloaded.get_base_model() if lora else offloaded
    plain.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        plain.enable_input_require_grads()
    assert all(map(torch.equal, gradients(offloaded), want))
    monkeypatch.setattr(selective_checkpointing, "save_on_cpu", counted)
    assert all(map(torch.equal, gradients(offloaded), want))
    assert seen == [(1, 60, 128)] * 4  # each layer's input, once
    seen.clear()
    plain.gradient_checkpointing_disable()
    assert all(map(torch.equal, gradients(offloaded), want)) and not seen
