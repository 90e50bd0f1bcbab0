"""What an adapter makes of its base's tensors, and adapters of which no model can be made."""

import json
import math

import pytest
from adapter_kinds import ATTENTION, EVERY, make_adapter
from merging import merged
from safetensors.torch import load_file, save_file

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.save import save


def edited(folder, **settings):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without(folder, part):
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if part not in name}
    save_file(kept, folder / "adapter_model.safetensors")


def infinite(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = math.inf
    save_file(tensors, folder / "adapter_model.safetensors")


REFUSED = {
    "another kind": (lambda f: edited(f, peft_type="IA3"), "must be LoRA"),
    "no base": (lambda f: edited(f, base_model_name_or_path=None), "must be LoRA and name its base"),
    "a changed base": (lambda f: edited(f, init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4': it was"),
    "an unknown setting": (lambda f: edited(f, kasa_config={"a": 1}), "kasa_config is set"),
    "repeated layers": (lambda f: edited(f, layer_replication=[[0, 2]]), "layer_replication is set"),
    "a bias in the factors": (lambda f: edited(f, lora_bias=True), "lora_bias is set"),
    "alpha in words": (lambda f: edited(f, lora_alpha="much"), "lora_alpha is 'much'"),
    "another rank": (lambda f: edited(f, r=3), "has rank 2, adapter_config.json says 3; they do not belong together"),
    "half of a pair": (lambda f: without(f, "0.mlp.up_proj.lora_A"), "layers.0.mlp.up_proj.weight has one of lora_A and"),
    "no weights": (lambda f: without(f, ""), "holds no weights"),
    "dora without lengths": (lambda f: edited(f, use_dora=True), "do not agree on a lora_magnitude_vector"),
    "not finite": (infinite, "values that are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged_is_refused(bases, tmp_path, case):
    make_adapter(bases["untied"], tmp_path / "adapter", target_modules=EVERY)
    damage, message = REFUSED[case]
    damage(tmp_path / "adapter")
    with pytest.raises(InputError, match=message) as refused:
        merged(bases["untied"], tmp_path / "adapter", tmp_path / "out")
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "side"),
    [
        ({"target_modules": ["lm_head"]}, "the head"),
        ({"target_modules": ["embed_tokens"]}, "the embedding"),
        ({"target_modules": ATTENTION, "modules_to_save": ["lm_head"]}, "the head"),
        ({"target_modules": ATTENTION, "modules_to_save": ["embed_tokens"]}, "the embedding"),
    ],
)
def test_one_side_of_tied_embeddings_is_refused(bases, tmp_path, settings, side):
    make_adapter(bases["tied"], tmp_path / "adapter", **settings)
    with pytest.raises(InputError, match=f"{side} alone is adapted, and in the base embedding and head are one tensor"):
        Merge(tmp_path / "adapter", bases["tied"], read_config(bases["tied"]))


def test_an_adapter_of_another_model(bases, make_pair, tmp_path):
    save(make_pair(hidden_size=64)[1], tmp_path / "wide")
    make_adapter(tmp_path / "wide", tmp_path / "adapter", target_modules=ATTENTION)
    with pytest.raises(InputError, match=r"lora_A of .* has shape .2, 64.; .* the adapter is for another model"):
        Merge(tmp_path / "adapter", bases["untied"], read_config(bases["untied"]))
    kinds = ["full_attention", "linear_attention"]
    save(make_pair(num_hidden_layers=2, layer_types=kinds)[1], tmp_path / "deep")
    make_adapter(tmp_path / "deep", tmp_path / "other", target_modules=ATTENTION)
    with pytest.raises(InputError, match="and the base has no such tensor; the adapter is for another model"):
        Merge(tmp_path / "other", bases["untied"], read_config(bases["untied"]))
