"""What is saved: names, dtypes, modes, and that verify sees what is wrong with it."""

import json
import os

import pytest
import torch
from checkpoint_files import edit, logits
from safetensors.torch import load_file, save_file
from transformers import OlmoHybridForCausalLM

import hybrid_ft
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint import agreement
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.lay_flat import is_flat


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": True}, {"rope_parameters": {"rope_theta": 500.0}}])
def test_saved_opens_in_plain_transformers_and_in_ours(make_pair, tmp_path, relative, fields):
    plain, ours = make_pair(seed=1, **fields)
    save(ours, tmp_path)
    reopened, info = OlmoHybridForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(reopened), logits(plain)) < 1e-6
    again = hybrid_ft.load(tmp_path)
    assert is_flat(again) and type(again).__name__ == "OlmoHybridForCausalLM"
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


def test_a_model_that_blows_rounding_up_is_measured_by_float64(ours, tmp_path, monkeypatch):
    """Sharp attention makes 3e-5 of float32's rounding; the bound is set below that."""
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                parameter *= 100
    save(ours, tmp_path)
    monkeypatch.setattr(agreement, "_TOLERANCE", 6e-6)
    assert verify(tmp_path, ours) < 1e-10
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="logits differ by"):
        patched.setattr(agreement, "_MOST", 0.0)  # and so not in float64
        verify(tmp_path, ours)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] *= 1 + 1e-3
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match="logits differ by 1"):
        verify(tmp_path, ours)


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


def test_weights_are_readable_by_whom_the_umask_lets(ours, tmp_path):
    before = os.umask(0o027)
    try:
        save(ours, tmp_path / "saved")
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "saved").iterdir()} == {"0o640"}
