"""``load`` with a quantization_config: the layers and the numbers of plain transformers, on the same weights."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

import hybrid_ft
from hybrid_ft.errors import InputError

TINY = Path(hybrid_ft.__file__).parent / "hybrid_model" / "tiny"
ROW = torch.tensor([[5, 9, 33, 60, 12, 7, 8]])


def nf4(double: bool = False) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )


def int8() -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return BitsAndBytesConfig(load_in_8bit=True)


def torchao_int8() -> TorchAoConfig:
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def plain_model(config: Any) -> PreTrainedModel:
    """On a CPU with AVX512 bitsandbytes packs layers anew when they are first called, and fails at some of tiny's."""
    model: Any = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=config, dtype=torch.float32)
    for module in model.modules():
        module.support_avx512bf16_for_cpu = False
    return model.eval()


def answer(model: PreTrainedModel) -> tuple[torch.Tensor, list[int]]:
    with torch.no_grad():
        tokens = model.generate(ROW, attention_mask=torch.ones_like(ROW), max_new_tokens=12, do_sample=False)
        return model(ROW).logits, tokens[0].tolist()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(
    ("config", "bound"),
    # bitsandbytes' 8 bits round activations too, where the last bit of a sum decides
    [(nf4, 1e-5), (lambda: nf4(double=True), 1e-5), (torchao_int8, 1e-5), (int8, 0.01)],
    ids=["nf4", "nf4-double", "torchao-int8", "int8"],
)
def test_quantised_in_loading_as_in_plain_transformers(config: Callable[[], Any], bound: float) -> None:
    plain = plain_model(config())
    ours = hybrid_ft.load(TINY, quantization_config=config(), dtype=torch.float32)
    kinds = {name: type(module.weight) for name, module in plain.named_modules() if hasattr(module, "in_features")}
    assert len(set(kinds.values())) == 2  # quantised ones and the head
    assert kinds == {name: type(m.weight) for name, m in ours.named_modules() if hasattr(m, "in_features")}
    (logits, tokens), (expected, expected_tokens) = answer(ours), answer(plain)
    assert apart(logits, expected) < bound and tokens == expected_tokens
    assert apart(expected, answer(hybrid_ft.load(TINY, dtype=torch.float32))[0]) > 1e-3  # fewer bits do round


@pytest.mark.parametrize("config", [nf4, torchao_int8], ids=["nf4", "torchao-int8"])
def test_what_is_saved_opens_in_plain_transformers_and_trains_with_lora(
    tmp_path: Path, config: Callable[[], Any]
) -> None:
    ours = hybrid_ft.load(TINY, quantization_config=config(), dtype=torch.float32)
    ours.save_pretrained(tmp_path)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for module in reopened.modules():
        module.support_avx512bf16_for_cpu = False
    (logits, tokens), (expected, expected_tokens) = answer(reopened), answer(ours)
    assert apart(logits, expected) < 1e-5 and tokens == expected_tokens
    adapted = get_peft_model(ours, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    adapted(ROW, labels=ROW).loss.backward()
    trained = {name: p for name, p in adapted.named_parameters() if p.requires_grad and "lora_B" in name}
    assert len(trained) > 20 and all(p.grad is not None and p.grad.any() for p in trained.values())


def test_it_is_not_packed_anew_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes would on a CPU with AVX512, and fail at rows that are no whole blocks, as some of tiny's."""
    config = nf4()
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    assert (
        apart(
            answer(hybrid_ft.load(TINY, quantization_config=config, dtype=torch.float32))[0],
            answer(plain_model(config))[0],
        )
        < 1e-5
    )


@pytest.mark.parametrize("config", [nf4, lambda: nf4(double=True), int8, torchao_int8])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, config: Callable[[], Any]) -> None:
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds values that are not finite"):
        hybrid_ft.load(tmp_path, quantization_config=config())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 4}, "The model's quantization config from the arguments has no `quant_method`"),
        ({"quant_method": "gptq", "bits": 4}, "is gptq; bitsandbytes and torchao are known here"),
        ("int8", "'str' object has no attribute 'quant_method'"),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^load: quantization_config.*{message}"):
        hybrid_ft.load(TINY, quantization_config=config)


@pytest.mark.parametrize("keyword", ["from_scratch", "scores"])
def test_only_weights_of_a_language_model_are_quantised(keyword: str) -> None:
    with pytest.raises(InputError, match="load: quantization_config is for weights of a language model"):
        hybrid_ft.load(TINY, quantization_config=int8(), **{keyword: True})
