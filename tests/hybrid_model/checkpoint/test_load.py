"""What a config, a name and the arguments of load make of a checkpoint."""

import json

import pytest
import torch
from checkpoint_files import edit, logits
from transformers import OlmoHybridForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.checkpoint.tokenizer import load_tokenizer


def test_a_model_that_the_user_has_opened_is_laid_flat(saved, ours):
    plain = OlmoHybridForCausalLM.from_pretrained(saved)
    assert torch.equal(logits(hybrid_ft.lay_flat(plain)), logits(ours))


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
        (
            {"path": "tiny", "from_scratch": True, "dtype": "int4"},
            "dtype: got 'int4'; must be one of float32, bfloat16",
        ),
        (
            {"path": "no-such-preset"},
            "no-such-preset: no such folder; name a preset \\(tiny, 190M, 1B, 7B, samba-421M, samba-1.3B\\)",
        ),
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
    with pytest.raises(
        InputError,
        match=r"owner/name at v1: no such folder here, and .* hub \(cannot find .* connect\); check the name",
    ):
        hybrid_ft.load("owner/name", revision="v1")
    with pytest.raises(
        InputError, match=r"owner/name: no such folder here, and .* hub \(cannot find .* connect\); check the name"
    ):
        load_tokenizer("owner/name")


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
