"""Adapters of PEFT's that go by rows: each row of a batch as it is alone, or a refusal by name."""

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.hybrid_model.families.known import family_of_type

NAMES = ["a", "b", "__base__"]
TOKENS = torch.randint(1, 60, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[1, :4] = 0


@pytest.fixture(params=["olmo_hybrid", "qwen3_5_text"])
def adapted(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    """Two adapters on transformers' model, and on ours."""
    kind, models = request.param, []
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=64, pad_token_id=0, **family_of_type(kind).tiny[kind])
    plain = AutoModelForCausalLM.from_config(config).eval()
    ours = hybrid_ft.lay_flat(copy.deepcopy(plain))
    for model in (plain, ours.eval()):
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        with warnings.catch_warnings(action="ignore"):
            torch.manual_seed(1)
            models.append(get_peft_model(model, config, adapter_name="a"))
            torch.manual_seed(2)
            models[-1].add_adapter("b", config)
    return models[0].eval(), models[1].eval()


@pytest.mark.parametrize("options", [{}, {"use_cache": False}])
@torch.no_grad()
def test_each_row_has_its_adapter(adapted: Any, relative: Any, options: Any) -> None:
    plain, ours = adapted
    batch = {"input_ids": TOKENS, "attention_mask": MASK, "adapter_names": NAMES} | options
    real = MASK.bool()
    assert relative(ours(**batch).logits[real], plain(**batch).logits[real]) < 1e-5
    greedy = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**batch, **greedy), plain.generate(**batch, **greedy))


@torch.no_grad()
def test_pairs_too_and_packed_rows_as_one_or_not_at_all(adapted: Any, relative: Any) -> None:
    _, ours = adapted
    rows = TOKENS.clone()
    rows[1, :5] = rows[0, :5]
    shared = {"prompt_lengths": torch.tensor([5, 5, 0]), "prompt_rows": torch.tensor([0, 0, 2])}
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows), "adapter_names": NAMES, "use_cache": False}
    assert relative(ours(**batch, **shared).logits, ours(**batch).logits) < 1e-5
    packed = {"input_ids": TOKENS, "position_ids": torch.arange(6).repeat(3, 2), "adapter_names": NAMES}
    if ours.config.model_type == "olmo_hybrid":
        alone = ours(input_ids=TOKENS[1:2, 6:], adapter_names=["b"]).logits
        assert relative(ours(**packed).logits[1:2, 6:], alone) < 1e-5
    else:
        with pytest.raises(ValueError, match="adapter_names, aLoRA and X-LoRA treat each row in its own way"):
            ours(**packed)
