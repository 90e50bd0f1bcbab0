"""aLoRA and X-LoRA of PEFT's beside plain transformers: the same numbers on rows."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.hybrid_model.families.known import family_of_type

TOKENS = torch.randint(10, 60, (3, 12), generator=torch.Generator().manual_seed(0))
TOKENS[:, 6:8] = torch.tensor([5, 6])  # from here on aLoRA adapts


def both(kind: str) -> list[Any]:
    """transformers' model, and ours of the same weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, **family_of_type(kind).tiny[kind])
    plain = AutoModelForCausalLM.from_config(config).eval()
    return [plain, hybrid_ft.lay_flat(copy.deepcopy(plain)).eval()]


def adapted(model: Any, config: Any) -> Any:
    torch.manual_seed(1)
    with warnings.catch_warnings(action="ignore"):
        return get_peft_model(model, config).eval()


@pytest.mark.parametrize("kind", ["olmo_hybrid", "qwen3_5_text"])
@torch.no_grad()
def test_alora_begins_at_its_tokens(kind: str, relative: Any) -> None:
    config = LoraConfig(
        r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False, alora_invocation_tokens=[5, 6],
        task_type="CAUSAL_LM",
    )  # fmt: skip
    plain, ours = (adapted(model, copy.deepcopy(config)) for model in both(kind))
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "use_cache": False}
    found, expected = ours(**batch).logits, plain(**batch).logits
    assert relative(found, expected) < 1e-5
    with plain.disable_adapter():
        base = plain(**batch).logits
    assert torch.equal(expected[:, :6], base[:, :6]) and relative(base[:, 6:], expected[:, 6:]) > 1e-3
    packed = {"input_ids": TOKENS, "position_ids": torch.arange(6).repeat(3, 2), "use_cache": False}
    if kind == "olmo_hybrid":
        # the place is a row's own: here where its second document begins
        alone = ours(input_ids=TOKENS[:, 6:], use_cache=False).logits
        assert relative(ours(**packed).logits[:, 6:], alone) < 1e-5
        return
    with pytest.raises(ValueError, match="adapter_names, aLoRA and X-LoRA"):
        ours(**packed)


@pytest.mark.parametrize("kind", ["olmo_hybrid", "qwen3_5_text"])
@torch.no_grad()
def test_xlora_mixes_its_adapters(kind: str, relative: Any, tmp_path: Path) -> None:
    models = both(kind)
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        lora = LoraConfig(r=4, target_modules=["q_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        get_peft_model(copy.deepcopy(models[0]), lora).save_pretrained(tmp_path / name)
    adapters = {str(index): str(tmp_path / name) for index, name in enumerate("ab")}
    made = []
    for model in models:
        model.config.use_cache = False
        config = XLoraConfig(
            task_type="CAUSAL_LM", hidden_size=model.config.hidden_size, xlora_depth=2, adapters=adapters
        )
        made.append(adapted(model, config))
    plain, ours = made
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "use_cache": False}
    assert relative(ours(**batch).logits, plain(**batch).logits) < 1e-5
