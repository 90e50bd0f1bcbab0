"""What a run leaves behind."""

import json
from pathlib import Path

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
    assert f"next: hybrid-ft chat {folder}" in run.screen


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
    frozen = [name for name in load_file(run.folder / "adapter/adapter_model.safetensors") if "lora" not in name]
    assert frozen == []
