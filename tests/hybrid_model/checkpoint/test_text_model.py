"""The text model of a checkpoint: read from its config, opened by transformers, with nothing missing and nothing more."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import OlmoHybridForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.text_model import (
    empty_text_model,
    load_scorer,
    load_text_model,
    model_without_values,
    random_text_model,
    reopened,
    tensor_shapes,
    text_config,
)


@pytest.fixture(scope="module")
def base(make_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    make_pair(seed=5)[0].save_pretrained(folder)
    return folder


@pytest.fixture
def config(base):
    return text_config(json.loads((base / "config.json").read_text()), base / "config.json")


def changed(base, tmp_path, change):
    """The base with its tensors changed."""
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path


def test_it_is_the_model_that_transformers_opens(base, config, relative):
    plain = OlmoHybridForCausalLM.from_pretrained(base).eval()
    ours = load_text_model(base, config, torch.float32)
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        assert relative(ours(tokens, use_cache=False).logits, plain(tokens, use_cache=False).logits) < 1e-5
    assert ours.checkpoint_folder == base and not ours.training
    again = reopened(base, config).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in plain.state_dict().items())


def test_shapes_are_told_without_weights(base, config):
    plain = {name: tuple(x.shape) for name, x in OlmoHybridForCausalLM.from_pretrained(base).state_dict().items()}
    assert tensor_shapes(config) == plain
    empty = model_without_values(base, config)
    assert {x.device.type for x in empty.parameters()} == {"meta"}
    assert {name: tuple(x.shape) for name, x in empty.state_dict().items()} == plain
    kinds = [
        {name: (x.shape, x.dtype) for name, x in made.state_dict().items()}
        for made in (
            load_text_model(base, config, torch.bfloat16),
            random_text_model(config, torch.bfloat16),
            empty_text_model(config, torch.bfloat16),
        )
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    assert {name.rpartition(".")[2] for name, (_, dtype) in kinds[0].items() if dtype == torch.float32} == {
        "A_log",
        "dt_bias",
    }


def test_weights_that_are_not_those_of_the_config_are_refused(base, config, tmp_path):
    name = "model.layers.0.mlp.up_proj.weight"
    for number, (change, said) in enumerate(
        (
            (lambda tensors: tensors.pop(name), f"tensor {name} is missing (1 such)"),
            (lambda tensors: tensors.update(more=torch.zeros(2)), "tensor more is not part of the model (1 such)"),
            (
                lambda tensors: tensors.update({name: torch.zeros(3, 2)}),
                f"tensor {name} has shape [3, 2], its config.json asks for [48, 32]",
            ),
        )
    ):
        (tmp_path / str(number)).mkdir()
        folder = changed(base, tmp_path / str(number), change)
        for open_it in (load_text_model, lambda *given: model_without_values(*given[:2])):
            with pytest.raises(InputError) as refused:
                open_it(folder, config, torch.float32)
            assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_new_head_is_drawn_by_its_seed_over_the_same_text_model(base, config):
    first, again, other = (load_scorer(base, config, torch.float32, seed) for seed in (1, 1, 2))
    states = [one.state_dict() for one in (first, again, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    different = {name for name in states[0] if not torch.equal(states[0][name], states[2][name])}
    assert different == {"score.weight"}
    plain = OlmoHybridForCausalLM.from_pretrained(base).state_dict()
    assert torch.equal(states[0]["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "no_such"}, "no_such"),
        (
            {"quantization_config": {"bits": 4}},
            "cannot be trained; name the checkpoint before it (plain transformers answers",
        ),
        ({"layer_types": 7}, "config.json: "),
        ({"model_type": "qwen3_5", "text_config": "x"}, "text_config is 'x'; must be an object"),
    ],
)
def test_a_config_that_describes_no_model_is_one_line(base, change, said):
    raw = json.loads((base / "config.json").read_text()) | change
    with pytest.raises(InputError) as refused:
        text_config(raw, base / "config.json")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_multimodal_configs_own_ends_hold_for_its_text_model():
    text = {
        "vocab_size": 64,
        "hidden_size": 64,
        "num_hidden_layers": 1,
        "layer_types": ["full_attention"],
        "eos_token_id": 4,
    }
    raw = {"model_type": "qwen3_5", "text_config": text, "tie_word_embeddings": True, "eos_token_id": 6}
    made = text_config(raw, "config.json")
    assert made.model_type == "qwen3_5_text" and made.eos_token_id == [6, 4] and made.tie_word_embeddings is True
