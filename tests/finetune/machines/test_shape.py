"""A model's numbers and bytes by layers, beside those of its parameters."""

import pytest
import torch
from shapes import cut, shape
from transformers import OlmoHybridForCausalLM

from hybrid_ft.finetune.machines.shape import shape_of
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.families.olmo_hybrid.presets import preset_config
from hybrid_ft.hybrid_model.lay_flat import lay_flat
from hybrid_ft.hybrid_model.quantised import quantise


@pytest.mark.slow
@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_quantised_base_weighs_what_bitsandbytes_makes_of_it(how: str) -> None:
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = lay_flat(OlmoHybridForCausalLM(preset_config("tiny"))).bfloat16()
    whole, config = shape_of(model, model.config, True), model.config
    reckoned = shape_of(add_lora(model, rank=4), config, True, how)
    adapters = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    model = lay_flat(OlmoHybridForCausalLM(preset_config("tiny"))).bfloat16()
    quantise(model, how, torch.bfloat16)
    found = sum(x.numel() * x.element_size() for name, x in model.named_buffers() if name.endswith("scales"))
    for parameter in model.parameters():
        found += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tables = (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)
            found += sum(x.numel() * x.element_size() for x in tables)
    assert reckoned.bytes - adapters == pytest.approx(found, rel=2e-3)
    assert found < 0.85 * whole.bytes
    assert reckoned.unpacked == 2 * config.hidden_size * config.intermediate_size


@pytest.mark.parametrize(("lora", "optimizer"), [(0, "adamw"), (0, "adamw_bf16"), (16, "adamw")])
def test_each_layer_has_its_own_numbers(lora: int, optimizer: str) -> None:
    """Counted on the model itself, adapters included."""
    config = cut("190M", 4)
    of = shape(config, lora, optimizer=optimizer)
    dtype = torch.bfloat16 if lora or optimizer == "adamw_bf16" else torch.float32
    with torch.device("meta"):
        model = lay_flat(OlmoHybridForCausalLM(config)).to(dtype)
        model = add_lora(model, rank=lora) if lora else model
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    assert of.bytes == pytest.approx(whole, rel=1e-6 if not lora else 0.02)  # rates of decay stay in float32
    assert of.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    for number, layer in enumerate(of.layers):
        own = [p for name, p in model.named_parameters() if f".layers.{number}." in name]
        assert layer.weights == sum(p.numel() for p in own)
        assert layer.trained == sum(p.numel() for p in own if p.requires_grad)
    assert [layer.attends for layer in of.layers] == [kind == "full_attention" for kind in config.layer_types]
    assert of.proven and of.gradient == (2 if optimizer == "adamw_bf16" else 4)


def test_adapters_keep_less_than_training_all_weights() -> None:
    """And of some projections less than of all; dropout keeps a mask and a copy more."""
    config = cut("190M", 4)
    kept = {name: [layer.kept for layer in shape(config, **how).layers] for name, how in
            {"all": {}, "lora": {"lora": 8}, "attention": {"lora": 8, "targets": "attention"}}.items()}  # fmt: skip
    assert all(few < some < full for few, some, full in zip(kept["attention"], kept["lora"], kept["all"], strict=True))


def test_what_pieces_put_together() -> None:
    """In the arithmetic's dtype where the weights are cast, and as they are kept otherwise."""
    full, small = shape(cut("190M", 4)), shape(cut("190M", 4), optimizer="adamw_bf16")
    layer = full.layers[0]
    assert full.is_cast and full.gathered(layer) == 2 * layer.weights == layer.bytes / 2
    assert not small.is_cast and small.gathered(small.layers[0]) == small.layers[0].bytes
    assert shape(cut("190M", 4), 8).embedding == 0 and full.embedding == 4 * full.head
