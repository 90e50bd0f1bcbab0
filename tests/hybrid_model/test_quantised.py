"""Which layers are kept in fewer bits, what they weigh, and that a base without values is made alike."""

import pytest
import torch
from torch import nn

import hybrid_ft
from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.hybrid_model import quantised
from hybrid_ft.hybrid_model.adapters import ALL_LINEAR, add_lora
from hybrid_ft.hybrid_model.quantised import check_installed, known_to_peft, large_layers, packed_bytes, quantise, size

LAYERS = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}


@pytest.fixture
def model(make_pair):
    return make_pair()[1]


def test_the_layers_are_those_that_lora_adapts(make_pair, model):
    found = large_layers(model, model.config)
    adapted = add_lora(make_pair()[1], ALL_LINEAR, rank=2)
    of_lora = {
        name.removeprefix("base_model.model.") for name, module in adapted.named_modules() if hasattr(module, "lora_A")
    }
    assert set(found) == of_lora
    assert not [name for name in found if name.endswith(("a_proj", "b_proj", "lm_head"))]
    under = large_layers(adapted, adapted.config)
    assert {name.removeprefix("base_model.model.").removesuffix(".base_layer") for name in under} == of_lora


def test_bytes_are_counted_by_blocks_and_rows(model):
    config, layers = model.config, large_layers(model, model.config)
    in_8, in_4 = packed_bytes(model, config, "int8"), packed_bytes(model, config, "nf4")
    for name, layer in layers.items():
        out, inner = layer.weight.shape
        assert in_8[f"{name}.weight"] == out * inner + 4 * out
        assert out * inner / 2 + out * inner / 64 < in_4[f"{name}.weight"] < out * inner / 2 + out * inner / 60 + 1200


@pytest.mark.parametrize("how", LAYERS)
def test_bytes_are_what_bitsandbytes_makes(model, how):
    pytest.importorskip("bitsandbytes")
    told = packed_bytes(model, model.config, how)
    names = [name.removesuffix(".weight") for name in told]
    quantise(model, how, torch.float32)
    for name in names:
        layer = model.get_submodule(name)
        assert type(layer).__name__ == LAYERS[how]
        tensors = [layer.weight, *([layer.scales] if how == "int8" else list(quantised.tables(layer)))]
        found = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert told[f"{name}.weight"] == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize("how", LAYERS)
def test_a_base_without_values_is_the_same_but_for_them(tiny_base, monkeypatch, how):
    """And no layer of it is packed: one of each shape is."""
    pytest.importorskip("bitsandbytes")
    packed, pack = [], quantised._packed
    monkeypatch.setattr(quantised, "_packed", lambda weight: packed.append(weight.shape) or pack(weight))
    found = []
    for values in (True, False):
        model = hybrid_ft.load(tiny_base, dtype=torch.bfloat16, weights=values)
        packed.clear()
        quantise(model, how, torch.bfloat16, values)
        beside = {str(number): table for number, table in enumerate(quantised.tables(model))}
        tensors = dict(model.named_parameters()) | dict(model.named_buffers()) | beside
        kinds = {name: (type(module).__name__, module.training) for name, module in model.named_modules()}
        states = [state and (state.shape, state.dtype) for state in map(_state, model.parameters())]
        found.append(({name: (x.shape, x.dtype, type(x)) for name, x in tensors.items()}, kinds, states))
    assert found[0] == found[1] and len(packed) == len(set(packed))


def _state(parameter):
    return getattr(parameter, "quant_state", None)


def test_peft_is_told_inside_alone(model):
    for how, name in (("nf4", "is_loaded_in_4bit"), ("int8", "is_loaded_in_8bit")):
        with known_to_peft(model, how):
            assert getattr(model, name) is True
        assert not hasattr(model, name)
    with known_to_peft(model, None):
        assert not hasattr(model, "is_loaded_in_4bit")


def test_a_parameter_that_is_not_packed_stands_for_itself():
    assert size(nn.Parameter(torch.zeros(3, 5))) == 15


def test_without_bitsandbytes_it_is_said(monkeypatch):
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="bitsandbytes is not installed; pip install") as refused:
        check_installed()
    assert refused.value.status == ENVIRONMENT
