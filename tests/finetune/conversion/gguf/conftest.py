"""Tiny models with a tokenizer that llama.cpp has a name for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """``made(model_type, split=..., **config)``: a folder with random weights, whose norms and rates are
    not their first values."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from hybrid_ft.finetune.conversion.gguf.words import SPLITS
    from hybrid_ft.hybrid_model.families.known import family_of_type

    def make(model_type: str, split: str = "qwen35", **more: Any) -> Path:
        words = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        merges = [("h", "e"), ("he", "l"), ("hel", "l"), ("hell", "o"), ("Ġ", "w"), ("Ġw", "o")]
        words |= {"".join(pair): len(words) + index for index, pair in enumerate(merges)}
        backend = Tokenizer(models.BPE(vocab=words, merges=merges))
        pattern = {name: regex for regex, name in SPLITS.items()}.get(split, split)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|pad|>")
        tokenizer.add_tokens(["<think>"])
        tokenizer.chat_template = "{{ messages }}"
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
        sizes = dict(family_of_type(model_type).tiny[model_type]) | {"vocab_size": len(tokenizer) + 3, **ids, **more}
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(3)
                elif "norm" in name or name.endswith(("A_log", "dt_bias")):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
            for name, buffer in model.named_buffers():
                if name.endswith("bias"):  # by which experts are chosen
                    buffer.add_(torch.randn_like(buffer) * 0.1)
        folder = tmp_path / "base"
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def exported() -> Callable[[Path, Path], tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """``exported(base, out)``: tensors and settings of the file, and what the checkpoint holds."""
    import gguf
    import torch
    from safetensors.torch import load_file

    from hybrid_ft import cli

    def export(base: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        assert cli.main(["export", str(base), str(out), "--to", "gguf", "--type", "f32"]) == 0
        reader = gguf.GGUFReader(next(out.iterdir()))
        tensors = {one.name: torch.tensor(gguf.quants.dequantize(one.data, one.tensor_type)) for one in reader.tensors}
        settings = {name.partition(".")[2]: field.contents() for name, field in reader.fields.items()}
        return tensors, settings, load_file(base / "model.safetensors")

    return export
