"""What is reckoned of an optimizer's states is what it makes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import OlmoHybridForCausalLM

from hybrid_ft.finetune.machines.shape import shape_of
from hybrid_ft.finetune.runs.moments import moment_bytes
from hybrid_ft.finetune.runs.storage import checkpoint_bytes
from hybrid_ft.finetune.training.optimizers import own_optimizer
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config

ARGS = SimpleNamespace(
    learning_rate=1e-3,
    adam_beta1=0.9,
    adam_beta2=0.99,
    adam_epsilon=1e-8,
    weight_decay=0.0,
    seed=0,
    optim="adamw_torch",
)


def model_of(name: str, lora: bool) -> Any:
    config = preset_config("tiny")
    config.num_hidden_layers, config.layer_types = 4, config.layer_types[:4]
    model = OlmoHybridForCausalLM(config).to(torch.bfloat16 if name == "adamw_bf16" else torch.float32)
    return add_lora(model, rank=4) if lora else model


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", "muon"])
def test_of_every_optimizer(name: str, lora: bool) -> None:
    if lora and name == "adamw_bf16":
        pytest.skip("adapters are float32")
    model = model_of(name, lora)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made = own_optimizer(name, ARGS)
    optimizer = torch.optim.AdamW(trained) if made is None else None
    if made is not None:
        kind, options = made
        optimizer = kind()(model, **options) if name == "muon" else kind(trained, **options)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [x for of in optimizer.state.values() for key, x in of.items() if key != "step" and torch.is_tensor(x)]
    found = sum(x.numel() * x.element_size() for x in states)
    assert moment_bytes(model, name) == pytest.approx(found, rel=1e-3)
    assert shape_of(model, model.config, True, optimizer=name).moments == moment_bytes(model, name)
    saved = trained if lora else list(model.parameters())
    written = found + sum(p.numel() * p.element_size() for p in saved)
    assert checkpoint_bytes(model, name) == pytest.approx(written, rel=0.02, abs=100_000)
