"""A result in its base's layout: names, shapes, shards and untrained bytes are the base's."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.base_layout import place_of, save_in_base_layout, verify_in_base_layout
from hybrid_ft.hybrid_model.checkpoint.weight_files import read_headers
from hybrid_ft.hybrid_model.families.known import family_of_type

KIND = "lfm2"
TRAINED = "model.layers.1.feed_forward.w1.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of a family whose files transformers names, in several shards of bfloat16."""
    folder = tmp_path_factory.mktemp("base")
    tokens = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(KIND, **tokens | dict(family_of_type(KIND).tiny[KIND]))
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder, max_shard_size="50KB")
    return folder


@pytest.fixture
def model(base):
    """With one weight trained."""
    made = hybrid_ft.load(base, dtype=torch.float32)
    with torch.no_grad():
        made.get_parameter(TRAINED).add_(0.25)
    return made


def tensors(folder):
    return {name: x for path in folder.glob("*.safetensors") for name, x in load_file(path).items()}


def test_all_but_what_was_trained_is_the_bases_bytes(base, model, tmp_path):
    save_in_base_layout(model, tmp_path)
    before, after = tensors(base), tensors(tmp_path)
    assert len(read_headers(base)) > 3
    assert {p.name: {n: (e["dtype"], e["shape"]) for n, e in h.items()} for p, h in read_headers(base).items()} == {
        p.name: {n: (e["dtype"], e["shape"]) for n, e in h.items()} for p, h in read_headers(tmp_path).items()
    }
    assert [name for name in before if not torch.equal(before[name], after[name])] == [TRAINED]
    assert torch.equal(after[TRAINED], (before[TRAINED].float() + 0.25).bfloat16())
    index = "model.safetensors.index.json"
    assert json.loads((tmp_path / index).read_text()) == json.loads((base / index).read_text())
    assert verify_in_base_layout(tmp_path, model) < 1e-2


def test_a_result_that_is_not_the_model_in_memory_is_seen(base, model, tmp_path):
    save_in_base_layout(model, tmp_path)
    with torch.no_grad():
        model.get_parameter(TRAINED).add_(0.25)
    with pytest.raises(RuntimeError, match=f"{TRAINED} is not as it is in memory"):
        verify_in_base_layout(tmp_path, model)


def test_other_weight_files_than_the_bases_are_seen(model, tmp_path):
    save_in_base_layout(model, tmp_path)
    whole = tensors(tmp_path)
    for path in (*tmp_path.glob("*.safetensors"), tmp_path / "model.safetensors.index.json"):
        path.unlink()
    save_file(whole, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="has other weight files than"):
        verify_in_base_layout(tmp_path, model)


def test_a_base_that_is_gone_is_said(model, tmp_path):
    model.checkpoint_folder = tmp_path / "gone"
    with pytest.raises(InputError, match="the base is gone, and the result takes its layout from there"):
        save_in_base_layout(model, tmp_path / "out")


def test_a_tensor_in_memory_has_a_place_where_it_is_whole(base, model):
    shapes = {name: tuple(x.shape) for name, x in tensors(base).items()}
    state = model.state_dict()
    assert {place_of(model, name, state[name], shapes) for name in state} - {None} == set(shapes)
    assert place_of(model, TRAINED, state[TRAINED], shapes | {TRAINED: (1, 2)}) is None
