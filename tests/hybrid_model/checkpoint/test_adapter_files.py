"""Adapter folders answer as the adapted model does."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.generation import generate
from hybrid_ft.finetune.generation.generate import load_for_answers
from hybrid_ft.hybrid_model import adapters


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return hybrid_ft.load(tiny_base)


def saved_adapter(tiny_base: Path, tiny_tokenizer: Any, folder: Path, **kind: Any) -> torch.nn.Module:
    """An adapter that changes the model, saved the way a run saves it."""
    adapted = adapters.add_lora(hybrid_ft.load(tiny_base), "all-linear", rank=2, alpha=8, **kind)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_base)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    tiny_tokenizer.save_pretrained(str(folder))
    return adapted.eval()


@pytest.mark.parametrize("kind", [{}, {"dora": True, "rslora": True, "layers": [0]}], ids=["plain", "dora"])
def test_an_adapter_folder_answers_like_the_adapted_model(
    tiny_base: Path, tiny_tokenizer: Any, model: Any, tmp_path: Path, kind: Any
) -> None:
    adapted = saved_adapter(tiny_base, tiny_tokenizer, tmp_path, **kind)
    opened, tokenizer = load_for_answers(str(tmp_path))
    row = torch.tensor([[5, 9, 30, 42]])
    with torch.no_grad():
        wanted, got, plain = (each(input_ids=row, use_cache=False).logits for each in (adapted, opened, model))
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


def test_dora_without_its_lengths_is_one_line(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path, dora=True)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(InputError, match="lora_magnitude_vector tensors and use_dora in adapter_config.json do not"):
        load_for_answers(str(tmp_path))


def test_an_adapter_without_a_tokenizer_has_its_base_s(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path)
    for file in tmp_path.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    _, tokenizer = load_for_answers(str(tmp_path))
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize("damage", ["no weights", "no base", "another base", "not JSON"])
def test_a_broken_adapter_is_one_line(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path, damage: str) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path)
    config = tmp_path / "adapter_config.json"
    if damage == "no weights":
        (tmp_path / "adapter_model.safetensors").unlink()
    elif damage == "not JSON":
        config.write_text("{")
    else:
        content = json.loads(config.read_text())
        content["base_model_name_or_path"] = None if damage == "no base" else str(tmp_path / "gone")
        config.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        load_for_answers(str(tmp_path))
    assert "\n" not in str(refused.value)
    if damage == "another base":
        assert str(refused.value).startswith(f"{config}: base_model_name_or_path: {tmp_path / 'gone'}: no such folder")


def test_an_answer_ends_with_the_template_s_token_too(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's generation config knows its own end token alone."""
    asked: list[list[int]] = []

    def watched(model: Any, tokenizer: Any, prompts: Any, end_ids: list[int], *rest: Any) -> list[str]:
        asked.append(end_ids)
        return ["" for _ in prompts]

    monkeypatch.setattr(generate, "answer", watched)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hi\n")
    assert cli.main(["generate", str(tiny_base), "--prompts", str(prompts)]) == 0
    assert asked == [[3, 0]]


@pytest.mark.parametrize("kind", ["resized", "modules_to_save", "token rows"])
def test_an_adapter_with_more_than_factors_is_opened(
    tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    if kind == "resized":
        plain.resize_token_embeddings(192, mean_resizing=False)
    more: dict[str, Any] = {"modules_to_save": ["norm"]} if kind == "modules_to_save" else {}
    more |= {"trainable_token_indices": [7, 8]} if kind == "token rows" else {}
    adapted = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], **more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=kind == "resized")
    tiny_tokenizer.save_pretrained(str(tmp_path))
    row = torch.tensor([[5, 7, 33, 60, 8, 44]])
    with torch.no_grad():
        got = load_for_answers(str(tmp_path))[0](row, use_cache=False).logits
        assert torch.allclose(got, adapted.eval()(row, use_cache=False).logits, atol=1e-5)
