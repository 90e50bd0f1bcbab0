"""What a run leaves behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from run_helpers import LORA, plain_model
from safetensors.torch import load_file


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_full_result_opens_in_plain_transformers(start, tiny_tokenizer):
    from transformers import AutoTokenizer, GenerationConfig, OlmoHybridForCausalLM

    run = start(train={"weight_decay": 0.1, "schedule": "cosine"})
    folder = run.folder / "model"
    _, info = OlmoHybridForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny_tokenizer.chat_template
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [3, 0] and generation.pad_token_id == tiny_tokenizer.pad_token_id
    files = tree(run.folder)
    assert {"recipe.yaml", "run.json", "metrics.jsonl"} <= files
    odd = [name for name in files if name.endswith((".bin", ".md", ".pkl")) or ".staging" in name]
    assert odd == []
    assert f"next      talk      hybrid-ft chat {folder}\n" in run.screen


def test_a_result_keeps_what_its_template_was_given(start):
    from transformers import AutoTokenizer

    run = start(model=LORA | {"chat_template_kwargs": {"enable_thinking": False}})
    for name in ("adapter", "merged"):
        config = json.loads((run.folder / name / "tokenizer_config.json").read_text())
        assert config["chat_template_kwargs"] == {"enable_thinking": False}
        assert AutoTokenizer.from_pretrained(run.folder / name)("a").input_ids


def test_lora_results_open_with_peft_on_plain_transformers(start, tiny_base):
    from peft import PeftModel
    from transformers import GenerationConfig

    run = start(model=LORA)
    opened = PeftModel.from_pretrained(plain_model(tiny_base, torch.float32), run.folder / "adapter").eval()
    merged = plain_model(run.folder / "merged", torch.float32).eval()
    base = plain_model(tiny_base, torch.float32).eval()
    ids = torch.tensor([[5, 9, 33, 60, 12, 8, 7]])
    with torch.no_grad():
        with_adapter, folded, without = (model(ids, use_cache=False).logits for model in (opened, merged, base))
    assert (with_adapter - folded).norm() < 1e-5 * folded.norm()
    assert (with_adapter - without).norm() > 1e-2 * without.norm()
    config = json.loads((run.folder / "adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_base)
    assert GenerationConfig.from_pretrained(run.folder / "adapter").eos_token_id == [3, 0]
    assert not (run.folder / "adapter/README.md").exists() and not (run.folder / "model").exists()
    assert config["target_modules"] == sorted(config["target_modules"])
    assert (
        set(config["target_modules"]) >= {"down_proj", "g_proj", "q_proj"} and "lm_head" not in config["target_modules"]
    )
    frozen = [name for name in load_file(run.folder / "adapter/adapter_model.safetensors") if "lora" not in name]
    assert frozen == []


@pytest.fixture
def thinking_base(tiny_base, tmp_path):
    """A base that ends with its own tokens and samples by default, as the released Think model does."""
    folder = tmp_path / "models" / "think"
    shutil.copytree(tiny_base, folder)
    settings = {"eos_token_id": 1, "do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"use_cache": True, "eos_token_id": 0}))
    return folder


@pytest.mark.parametrize("lora", [None, LORA["lora"]])
def test_a_result_ends_and_samples_as_its_base_and_is_readable_by_all(
    start, thinking_base, tmp_path, monkeypatch, lora
):
    """The base is named as a user types it, from the folder he is in."""
    monkeypatch.chdir(tmp_path)
    before = os.umask(0o022)
    try:
        run = start(model={"path": "models/think", "lora": lora})
    finally:
        os.umask(before)
    for folder in [run.folder / name for name in (["adapter", "merged"] if lora else ["model"])]:
        written = json.loads((folder / "generation_config.json").read_text())
        assert written["eos_token_id"] == [3, 0, 1]  # the template's, the config's and the tokenizer's, the base's
        assert (written["do_sample"], written["temperature"], written["top_p"]) == (True, 0.6, 0.95)
        assert written["max_new_tokens"] == 2048
        assert {oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == {"0o644"}
        if folder.name != "adapter":
            assert json.loads((folder / "config.json").read_text())["use_cache"] is True
        else:
            adapter = json.loads((folder / "adapter_config.json").read_text())
            assert adapter["base_model_name_or_path"] == str(thinking_base)
