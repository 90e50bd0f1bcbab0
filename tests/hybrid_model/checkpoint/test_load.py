import json
import math
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, OlmoHybridForCausalLM, PreTrainedTokenizerFast

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary, load_tokenizer
from hybrid_ft.hybrid_model.families.olmo_hybrid import model as modeling


@pytest.fixture
def ours(make_pair):
    return make_pair(seed=2)[1]


@pytest.fixture
def saved(ours, tmp_path):
    return save(ours, tmp_path / "saved")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 40)[None], use_cache=False).logits


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"rope_parameters": {"rope_theta": 500.0}}])
def test_saved_opens_in_plain_transformers_and_in_ours(make_pair, tmp_path, relative, fields):
    plain, ours = make_pair(seed=1, **fields)
    save(ours, tmp_path)
    reopened, info = OlmoHybridForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(reopened), logits(plain)) < 1e-6
    again = hybrid_ft.load(tmp_path)
    assert type(again) is modeling.OlmoHybridForCausalLM
    assert torch.equal(logits(again), logits(ours))
    assert verify(tmp_path, ours) < 1e-5
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["OlmoHybridForCausalLM"]
    assert config["rope_parameters"].get("rope_theta") == (500.0 if "rope_parameters" in fields else None)


def test_tensor_names_are_the_released_ones(saved, ours):
    names = set(load_file(saved / "model.safetensors"))
    layers = {".".join(name.split(".")[3:]) for name in names if name.startswith("model.layers.0.")}
    assert layers == {
        *(f"linear_attn.{part}_proj.weight" for part in "qkvabgo"),
        *(f"linear_attn.{part}_conv1d.weight" for part in "qkv"),
        "linear_attn.o_norm.weight",
        "linear_attn.A_log",
        "linear_attn.dt_bias",
        "input_layernorm.weight",
        "post_attention_layernorm.weight",
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    assert len(names) == 2 * 18 + 11 + 3
    ours.save_pretrained(saved.parent / "trainer")
    assert set(load_file(saved.parent / "trainer" / "model.safetensors")) == names


def test_state_dict_reads_the_released_names(saved, ours, make_pair):
    """As Trainer resumes: load_state_dict with strict=False, which would pass over names it does not know."""
    fresh = make_pair(seed=9)[1]
    result = fresh.load_state_dict(load_file(saved / "model.safetensors"), strict=False)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(logits(fresh), logits(ours))


def test_from_pretrained_reads_it_too(saved, ours):
    assert torch.equal(logits(modeling.OlmoHybridForCausalLM.from_pretrained(saved)), logits(ours))


def test_bfloat16_is_saved_in_one_dtype_and_computed_with_gates_in_float32(ours, tmp_path):
    save(ours, tmp_path / "float32")
    model = hybrid_ft.load(tmp_path / "float32", dtype="bfloat16")
    gates = {name: p for name, p in model.named_parameters() if name.endswith(("A_log", "dt_bias"))}
    assert {p.dtype for p in gates.values()} == {torch.float32}
    for name, gate in gates.items():
        assert torch.equal(gate, ours.get_parameter(name))
    assert {p.dtype for name, p in model.named_parameters() if name not in gates} == {torch.bfloat16}
    save(model, tmp_path / "bfloat16")
    assert {t.dtype for t in load_file(tmp_path / "bfloat16" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "bfloat16" / "config.json").read_text())["dtype"] == "bfloat16"
    assert 0 < verify(tmp_path / "bfloat16", model) < 6e-2
    assert hybrid_ft.load(tmp_path / "bfloat16").dtype == torch.bfloat16


def test_a_merged_model_is_saved_like_any_other(ours, tmp_path, relative):
    save(ours, tmp_path / "base")
    adapted = add_lora(ours, "all-linear", rank=4, alpha=8)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    expected = logits(adapted)
    merged = adapted.merge_and_unload()
    save(merged, tmp_path / "merged")
    assert verify(tmp_path / "merged", merged) < 1e-5
    reopened = OlmoHybridForCausalLM.from_pretrained(tmp_path / "merged")
    assert relative(logits(reopened), expected) < 1e-5
    assert relative(expected, logits(hybrid_ft.load(tmp_path / "base"))) > 0.01


def test_verify_sees_one_changed_weight(saved, ours):
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.linear_attn.o_proj.weight"][3, 5] += 0.5
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="logits differ by"):
        verify(saved, ours)


def test_verify_sees_rope_names_and_end_tokens(saved, ours):
    edit(saved / "generation_config.json", lambda config: config.update(eos_token_id=[5, 61]))
    with pytest.raises(RuntimeError, match="end token 61 is outside the vocabulary of 61"):
        verify(saved, ours)
    edit(saved / "config.json", lambda config: config.update(rope_parameters=None))
    with pytest.raises(RuntimeError, match="whether they have rope"):
        verify(saved, ours)
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.attention_layer_norm.weight"] = tensors.pop("model.layers.0.input_layernorm.weight")
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="tensor names differ from the released layout"):
        verify(saved, ours)


@pytest.mark.parametrize(
    ("rope", "theta"),
    [
        ({"rope_parameters": None}, None),
        ({"rope_parameters": {"rope_theta": None}}, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None}}, None),
        ({}, None),
        ({"rope_parameters": None, "rope_theta": None}, None),
        ({"rope_parameters": {"rope_theta": 500000.0}}, 500000.0),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 70.0, "factor": 2.0}}, 70.0),
        ({"rope_theta": 300.0}, 300.0),
    ],
)
def test_rope_is_there_only_where_a_config_gives_a_theta(saved, ours, tmp_path, rope, theta):
    def change(config):
        config.pop("rope_parameters")
        config.update(rope)

    edit(saved / "config.json", change)
    model = hybrid_ft.load(saved)
    if theta is None:
        assert model.model.rotary_emb is None
        assert torch.equal(logits(model), logits(ours))
    else:
        assert model.model.rotary_emb.config.rope_parameters["rope_theta"] == theta
        assert not torch.allclose(logits(model), logits(ours))
    save(model, tmp_path / "again")
    stamped = json.loads((tmp_path / "again" / "config.json").read_text())["rope_parameters"]
    assert stamped["rope_theta"] == theta
    if theta is None:
        assert stamped == {"rope_theta": None}
    assert verify(tmp_path / "again", model) < 1e-5


def test_norms_have_their_own_eps(make_pair):
    model = make_pair(rms_norm_eps=1e-3)[1]
    eps = {name: m.variance_epsilon for name, m in model.named_modules() if hasattr(m, "variance_epsilon")}
    assert {value for name, value in eps.items() if name.endswith("o_norm")} == {1e-5}
    assert {value for name, value in eps.items() if not name.endswith("o_norm")} == {1e-3}


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
        "config.json: missing; it holds an adapter; make a model of it and its base with: hybrid-ft merge ",
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


def test_from_scratch(tmp_path):
    state = torch.random.get_rng_state()
    first = hybrid_ft.load("tiny", from_scratch=True, vocab_size=128, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.config.vocab_size == first.get_input_embeddings().num_embeddings == 128
    assert not first.training
    same, other = (hybrid_ft.load("tiny", from_scratch=True, vocab_size=128, seed=seed) for seed in (3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters()))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    save(first, tmp_path)
    again = hybrid_ft.load(tmp_path, from_scratch=True, seed=3)
    assert torch.equal(again.lm_head.weight, first.lm_head.weight)
    half = hybrid_ft.load("tiny", from_scratch=True, vocab_size=64, dtype="bfloat16")
    assert {half.dtype, half.model.layers[0].linear_attn.A_log.dtype} == {torch.bfloat16, torch.float32}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "7B"}, "model 7B is a shape without weights; set from_scratch: true"),
        ({"path": "tiny", "vocab_size": 64}, "vocab_size can be chosen with from_scratch only"),
        ({"path": "tiny", "from_scratch": True, "dtype": "int4"}, "dtype 'int4' is none of float32, bfloat16"),
        ({"path": "no-such-preset"}, "no-such-preset: no such folder; name a preset \\(tiny, 190M, 1B, 7B\\)"),
        ({"path": "./missing/folder"}, "./missing/folder: no such folder"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        hybrid_ft.load(**arguments)


def test_an_unknown_hub_name_is_one_line(monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot find the files\nand cannot connect")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError, match="owner/name at v1: no such folder here, and the hub says: cannot find"):
        hybrid_ft.load("owner/name", revision="v1")
    with pytest.raises(InputError, match="owner/name: no such folder here, and the hub says: cannot find"):
        load_tokenizer("owner/name")


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {word: i for i, word in enumerate(["<pad>", "<end>", *map(str, range(59))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<end>"
    )


def test_the_tokenizer_travels_with_the_model(ours, tokenizer, tmp_path):
    tokenizer.chat_template = "{{ messages }}"
    save(ours, tmp_path, tokenizer)
    again = load_tokenizer(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == "{{ messages }}"


def test_a_tokenizer_larger_than_the_embedding_is_refused(ours, tokenizer, tmp_path):
    check_vocabulary(tokenizer, ours.config)
    tokenizer.add_tokens(["one more"])
    with pytest.raises(
        InputError, match="the tokenizer needs an embedding of 62 rows, the model's has 61; use the model's own"
    ):
        save(ours, tmp_path / "never", tokenizer)
    assert not (tmp_path / "never").exists()


def test_a_folder_without_a_tokenizer_is_refused(saved):
    with pytest.raises(InputError, match=r"tokenizer\.json: missing; a tokenizer lies beside") as caught:
        load_tokenizer(saved)
    assert "\n" not in str(caught.value)


def test_a_model_bears_the_name_it_was_asked_by(saved, tmp_path, monkeypatch):
    """What PEFT writes down as an adapter's base: a hub name, or a path that holds from every folder."""
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    assert hybrid_ft.load("saved").name_or_path == str(saved)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(saved))
    model = hybrid_ft.load("owner/name")
    assert model.name_or_path == model.config._name_or_path == "owner/name"
    add_lora(model).save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/name"


def test_weights_are_readable_by_whom_the_umask_lets(ours, tmp_path):
    before = os.umask(0o027)
    try:
        save(ours, tmp_path / "saved")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "saved").iterdir()} == {"0o640"}
