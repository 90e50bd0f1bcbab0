"""Every family: an adapter merged file by file is the adapted model, and the rest is the base's bytes."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint import tensor_files
from hybrid_ft.hybrid_model.checkpoint.adapter_start import open_adapter
from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.whole_merge import compare_with_peft
from tests.hybrid_model.families.conftest import EVERY

TOKENS = torch.arange(3, 60)[None]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def small_blocks(monkeypatch):
    """Weights are read and written in several blocks, as those of a large model."""
    monkeypatch.setattr(tensor_files, "BLOCK", 500)


def tensors(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def rewrite(folder, weights):
    (folder / "model.safetensors").unlink()  # the tensors are still read from it
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def adapter_on(base, folder, **more):
    adapted = add_lora(hybrid_ft.load(base, dtype="float32"), rank=2, alpha=4, **more)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted


def merged(base, folder, dtype=None):
    merge = Merge(folder / "adapter", base, read_config(base), dtype)
    (folder / "out").mkdir()
    merge.write(folder / "out")
    merge.write_config(folder / "out")
    merge.verify(folder / "out")
    return merge


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS, use_cache=False).logits


@pytest.mark.parametrize("kind", EVERY)
def test_it_is_the_adapted_model_and_the_rest_is_the_bases_bytes(kind, plain_model, tmp_path, relative, small_blocks):
    base = tmp_path / "base"
    plain_model(kind).save_pretrained(base, max_shard_size="200KB")
    adapted = adapter_on(base, tmp_path / "adapter")
    try:
        merge = merged(base, tmp_path)
    except InputError as error:
        assert kind == "zamba2" and "one weight in several layers" in str(error)
        return
    assert compare_with_peft(merge, tmp_path / "out") < 1e-5
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(opened), logits(adapted)) < 1e-5
    before, after = tensors(base), tensors(tmp_path / "out")
    if kind != "olmo_hybrid":  # which has a layout of its own
        assert before.keys() == after.keys()
        assert {path.name for path in base.glob("*.safetensors")} == {
            path.name for path in (tmp_path / "out").glob("*.safetensors")
        }
    differing = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert len(merge.changed) == sum(1 for name, _ in adapted.named_parameters() if "lora_B" in name)
    assert {name for name in differing if "conv1d" not in name} == set(merge.changed)


def test_what_is_beside_the_text_model_stays(multimodal, tmp_path, relative):
    adapted = adapter_on(multimodal, tmp_path / "adapter")
    merge = merged(multimodal, tmp_path)
    assert compare_with_peft(merge, tmp_path / "out") < 1e-5
    assert all(name.startswith("model.language_model.layers.") for name in merge.changed)
    before, after = tensors(multimodal), tensors(tmp_path / "out")
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(merge.changed)
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads(
        (multimodal / "config.json").read_text()
    )
    assert (tmp_path / "out/preprocessor_config.json").is_file()
    assert relative(logits(hybrid_ft.load(tmp_path / "out")), logits(adapted)) < 1e-5


def test_a_dtype_leaves_what_the_family_keeps_in_float32(plain_model, tmp_path, relative):
    plain_model("qwen3_5_text").save_pretrained(tmp_path / "base")
    adapted = adapter_on(tmp_path / "base", tmp_path / "adapter")
    merge = merged(tmp_path / "base", tmp_path, torch.bfloat16)
    compare_with_peft(merge, tmp_path / "out")
    kept = {name for name, tensor in tensors(tmp_path / "out").items() if tensor.dtype == torch.float32}
    assert kept and all(name.endswith((".A_log", ".dt_bias")) for name in kept)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert relative(logits(hybrid_ft.load(tmp_path / "out", dtype="float32")), logits(adapted)) < 5e-2


@pytest.mark.parametrize("held", [False, True])
def test_a_grown_vocabulary_of_tied_embeddings(plain_model, tmp_path, relative, held):
    """``held``: the files hold the head beside the embedding that it is."""
    base = tmp_path / "base"
    plain = plain_model("lfm2")
    assert plain.config.tie_word_embeddings
    plain.save_pretrained(base)
    if held:
        weights = load_file(base / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        rewrite(base, weights)
    model = hybrid_ft.load(base)
    model.resize_token_embeddings(192, mean_resizing=False)
    adapted = add_lora(model, rank=2, token_rows=[130, 131])
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.normal_(std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    assert relative(logits(open_adapter(hybrid_ft.load(base), tmp_path / "adapter")), logits(adapted)) < 1e-5
    merge = merged(base, tmp_path)
    assert compare_with_peft(merge, tmp_path / "out") < 1e-5
    after = tensors(tmp_path / "out")
    assert ("lm_head.weight" in after) == held
    assert all(after[name].shape[0] == 192 for name in after if "embed_tokens" in name or "lm_head" in name)
    opened = hybrid_ft.load(tmp_path / "out")
    assert opened.config.vocab_size == 192
    assert relative(logits(opened), logits(adapted)) < 1e-5


def test_a_base_that_lacks_a_tensor_is_refused_by_its_headers(plain_model, tmp_path):
    base = tmp_path / "base"
    plain_model("qwen3_5_text").save_pretrained(base)
    adapter_on(base, tmp_path / "adapter")
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    rewrite(base, weights)
    with pytest.raises(InputError, match=r"tensor model.layers.1.mlp.up_proj.weight is missing"):
        Merge(tmp_path / "adapter", base, read_config(base))
