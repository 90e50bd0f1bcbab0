"""A merged checkpoint is the adapted model, whatever PEFT put into the adapter; the rest of it is the base's, byte for byte."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint import tensor_files
from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.save import save, write_config
from hybrid_ft.hybrid_model.checkpoint.whole_merge import compare_with_peft

sys.path.append(str(Path(__file__).parent))
from adapter_kinds import ATTENTION, EVERY, KINDS, TIED, make_adapter


@pytest.fixture
def small_blocks(monkeypatch):
    """Weights are read and written in several blocks, as those of a large model."""
    monkeypatch.setattr(tensor_files, "BLOCK", 300)


@pytest.fixture(scope="module")
def bases(make_pair, tmp_path_factory):
    made = {}
    for name, fields in {"untied": {}, "tied": {"tie_word_embeddings": True}}.items():
        made[name] = save(make_pair(seed=3, **fields)[1], tmp_path_factory.mktemp(name))
    return made


def merged(base, adapter, out, dtype=None):
    merge = Merge(adapter, base, read_config(base), dtype)
    out.mkdir()
    merge.write(out)
    write_config(merge.config, out)
    merge.verify(out)
    return merge


def logits(model, vocabulary=61):
    tokens = torch.randint(vocabulary, (1, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


CASES = [("untied", kind, KINDS[kind]) for kind in KINDS] + [("tied", kind, TIED[kind]) for kind in TIED]


@pytest.mark.filterwarnings("ignore")  # PEFT's on tied layers and on DoRA's merge
@pytest.mark.parametrize(
    ("base", "kind", "settings"),
    [
        # on a tied base the kinds that have no part in the tie merge as on any other
        pytest.param(
            *case, id=", ".join(case[:2]), marks=pytest.mark.slow if case[0] == "tied" and case[1] in KINDS else []
        )
        for case in CASES
    ],
)
def test_a_merged_model_is_the_adapted_one(bases, tmp_path, relative, small_blocks, base, kind, settings):
    adapted = make_adapter(bases[base], tmp_path / "adapter", **settings)
    merge = merged(bases[base], tmp_path / "adapter", tmp_path / "out")
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    size = settings.get("resize", 61)
    assert relative(logits(opened, size), logits(adapted, size)) < 2e-6
    assert compare_with_peft(merge, tmp_path / "out") < 2e-6
    assert relative(logits(opened)[..., :61], logits(AutoModelForCausalLM.from_pretrained(bases[base]))) > 1e-3
    before, after = (load_file(folder / "model.safetensors") for folder in (bases[base], tmp_path / "out"))
    assert {name for name in after if name not in before or not torch.equal(before[name], after[name])} == {
        *merge.changed
    }
    assert opened.config.tie_word_embeddings == (base == "tied" and kind not in ("both apart", "both by lora"))


def test_weights_that_were_not_trained_are_the_bases_bytes(bases, tmp_path, small_blocks):
    make_adapter(bases["untied"], tmp_path / "adapter", target_modules=ATTENTION)
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out")
    assert {".".join(name.split(".")[3:]) for name in merge.changed} == {f"{name}.weight" for name in ATTENTION}


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3), (torch.float32, 1e-6)])
def test_every_dtype_asked_for(bases, tmp_path, relative, dtype, most):
    adapted = make_adapter(bases["untied"], tmp_path / "adapter", target_modules=EVERY)
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out", dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert relative(logits(opened), logits(adapted)) < most
    compare_with_peft(merge, tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    exact = adapted.merge_and_unload().state_dict()[name]
    assert float((tensors[name] != exact.to(dtype)).float().mean()) < 0.01  # rounded once: not the base, then the sum


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_a_base_in_shards_with_convolutions_in_thirds(make_pair, tmp_path, relative, shard):
    make_pair(seed=3)[0].save_pretrained(tmp_path / "base", max_shard_size=shard)
    adapted = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=EVERY, modules_to_save=["conv1d"])
    merge = merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert files == {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    assert (len(files) > 5) == (shard == "20KB")
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(opened), logits(adapted)) < 2e-6
    assert compare_with_peft(merge, tmp_path / "out") < 2e-6


def test_files_that_are_there_are_not_written_again(make_pair, tmp_path):
    make_pair(seed=3)[0].save_pretrained(tmp_path / "base", max_shard_size="20KB")
    make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=EVERY)
    merge = Merge(tmp_path / "adapter", tmp_path / "base", read_config(tmp_path / "base"))
    (tmp_path / "out").mkdir()

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        merge.write(tmp_path / "out", kill)
    first = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert len(first) == 3
    merge.write(tmp_path / "out")
    assert first.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}.items()
    merge.verify(tmp_path / "out")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_verify_sees_one_wrong_weight(bases, tmp_path, name):
    make_adapter(bases["untied"], tmp_path / "adapter", target_modules=["up_proj"], modules_to_save=["lm_head"])
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[name].view(-1)[7] += 0.5
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=name):
        merge.verify(tmp_path / "out")
    with pytest.raises(RuntimeError, match="logits differ by"):
        compare_with_peft(merge, tmp_path / "out")


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
