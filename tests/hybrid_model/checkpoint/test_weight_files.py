"""Weight files as others wrote them, and broken ones."""

import math
import struct

import pytest
import torch
from checkpoint_files import edit, logits
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.save import save


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


Q = "model.layers.0.linear_attn.q_conv1d.weight"
BROKEN = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "no such folder; name a preset"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: missing; a checkpoint has one"),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "config.json: missing; it holds an adapter; a recipe goes on with it by model.adapter: ",
    ),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json: not a JSON object"),
    "another model": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="llama")),
        "config.json: model_type is 'llama'; must be one of bailing_hybrid",
    ),
    "a config of nonsense": (
        lambda f: edit(f / "config.json", lambda c: c.update(hidden_size="wide")),
        "config.json: .*hidden_size",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "no model.safetensors and no model.safetensors.index.json; weights are read from safetensors files only",
    ),
    "cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]),
        "model.safetensors: .* bytes, but its header promises .*; it is damaged, copy it again",
    ),
    "cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]),
        "model.safetensors: 50 bytes end before the file's header does",
    ),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: 0 bytes end before"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 9) + b"x" * 99),
        "model.safetensors: not a safetensors file",
    ),
    "a missing tensor": (lambda f: rewrite(f, lambda t: t.pop(Q)), f"tensor {Q} is missing \\(1 of 50 are\\)"),
    "an unexpected tensor": (
        lambda f: rewrite(f, lambda t: t.update(extra=torch.ones(2))),
        "model.safetensors: tensor extra is not part of the model \\(1 are not\\)",
    ),
    "another shape": (
        lambda f: rewrite(f, lambda t: t.update({Q: torch.ones(47, 1, 4)})),
        f"model.safetensors: tensor {Q} has shape \\[47, 1, 4\\], its config.json asks for \\[48, 1, 4\\]",
    ),
    "integers": (
        lambda f: rewrite(f, lambda t: t.update({Q: torch.ones(48, 1, 4, dtype=torch.int8)})),
        f"model.safetensors: tensor {Q} is I8; weights are read as",
    ),
    "not a number": (
        lambda f: rewrite(f, lambda t: t[Q].view(-1)[:1].fill_(math.nan)),
        "tensor .* holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(saved, case):
    damage, message = BROKEN[case]
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        hybrid_ft.load(saved)
    assert "\n" not in str(caught.value)


@pytest.fixture
def sharded(ours, tmp_path):
    ours.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards"


def test_shards_are_read(sharded, ours):
    assert torch.equal(logits(hybrid_ft.load(sharded)), logits(ours))


SHARDS = {
    "a missing shard": (lambda f, first, index: first.unlink(), "00001-of-.*: missing, but .* names it"),
    "a shard cut short": (
        lambda f, first, index: first.write_bytes(first.read_bytes()[:-1]),
        "00001-of-.* bytes, but its header promises",
    ),
    "an index that lies": (
        lambda f, first, index: edit(index, lambda i: i["weight_map"].update({Q: max(i["weight_map"].values())})),
        f"tensor {Q} is missing, but .* says it is there",
    ),
    "an index that forgets": (
        lambda f, first, index: edit(index, lambda i: i["weight_map"].pop(Q)),
        f"tensor {Q} is not in model.safetensors.index.json",
    ),
    "an index that is none": (lambda f, first, index: index.write_text("[]"), "not an index of weight files"),
    "an index that leads out": (
        lambda f, first, index: edit(index, lambda i: i["weight_map"].update({Q: "../saved/model.safetensors"})),
        "missing, but model.safetensors.index.json names it",
    ),
}


@pytest.mark.parametrize("case", SHARDS)
def test_broken_shards_are_refused(sharded, saved, case):
    damage, message = SHARDS[case]
    damage(sharded, min(sharded.glob("*.safetensors")), sharded / "model.safetensors.index.json")
    with pytest.raises(InputError, match=message):
        hybrid_ft.load(sharded)


def test_older_names_and_the_joined_convolution_are_read(saved, ours):
    def change(tensors):
        parts = [tensors.pop(Q.replace("q_", f"{part}_")) for part in "qkv"]
        tensors[Q.replace("q_", "")] = torch.cat(parts)
        for old in [name for name in tensors if "input_layernorm" in name]:
            tensors[old.replace("input_layernorm", "attention_layer_norm")] = tensors.pop(old)

    rewrite(saved, change)
    assert torch.equal(logits(hybrid_ft.load(saved)), logits(ours))


@pytest.mark.parametrize("heads", [4, 5])
@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_convolutions_that_transformers_wrote_in_thirds_are_read_and_mended(
    make_pair, tmp_path, relative, heads, shard
):
    """From 5.15 on it cuts the joined one equally, or with 5 heads of 13 and 24 channels into 84, 84 and 82."""
    sizes = {"linear_key_head_dim": 13, "linear_num_key_heads": heads, "linear_num_value_heads": heads}
    plain, ours = make_pair(seed=4, **sizes)
    plain.save_pretrained(tmp_path / "plain", max_shard_size=shard)
    files = {
        name: tensor for file in (tmp_path / "plain").glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    total = heads * (13 + 13 + 24)
    third = -(-total // 3)
    assert [len(files[Q.replace("q_", f"{part}_")]) for part in "qkv"] == [third, third, total - 2 * third]
    opened = hybrid_ft.load(tmp_path / "plain")
    assert torch.equal(logits(opened), logits(ours))
    save(opened, tmp_path / "ours")
    released = load_file(tmp_path / "ours" / "model.safetensors")
    assert [len(released[Q.replace("q_", f"{part}_")]) for part in "qkv"] == [heads * 13, heads * 13, heads * 24]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert relative(logits(again), logits(plain)) < 1e-6


def test_parts_of_another_sum_are_not_thirds(saved):
    def change(tensors):
        for part in "qkv":
            tensors[Q.replace("q_", f"{part}_")] = torch.ones(63, 1, 4)

    rewrite(saved, change)
    with pytest.raises(InputError, match=f"tensor {Q} has shape .63, 1, 4., its config.json asks for .48, 1, 4."):
        hybrid_ft.load(saved)
