"""Reward models of every family beside plain transformers' own or generic class, on the same weights."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, Olmo3ForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.load import open_plain
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of_type
from hybrid_ft.hybrid_model.scorer import _generic, in_plain_transformers, scorer_class

FAST = ("olmo_hybrid", "qwen3_next", "nemotron_h")
KINDS = [
    pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for family in FAMILIES for kind in family.tiny
]
TOKENS = {"vocab_size": 128, "pad_token_id": 1, "bos_token_id": None, "eos_token_id": 0}


def tiny_config(kind: str) -> Any:
    return AutoConfig.for_model(kind, **TOKENS | dict(family_of_type(kind).tiny[kind]))


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Four rows of two prompts; rows 1 and 3 are shorter."""
    ids = torch.randint(4, 128, (4, 20), generator=torch.Generator().manual_seed(0))
    ids[1, :7], ids[3, :7] = ids[0, :7], ids[2, :7]
    mask = torch.ones_like(ids)
    ids[1, 13:], mask[1, 13:], ids[3, 9:], mask[3, 9:] = 1, 0, 1, 0
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_plain_transformers(kind: str, tmp_path: Path) -> None:
    """Alone and with shared prompts; saved, opened again, and by the auto class where transformers has the mapping. An
    architecture without a reward model is refused by name."""
    with warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(kind)).save_pretrained(tmp_path / "base")
    try:
        scorer_class(tiny_config(kind))
    except InputError as error:
        assert family_of_type(kind).model_types[kind].removesuffix("ForCausalLM") in str(error)
        with pytest.raises(InputError, match="has no reward model"):
            hybrid_ft.load(tmp_path / "base", scores=True)
        return
    ours = hybrid_ft.load(tmp_path / "base", scores=True, seed=3)
    plain = open_plain(str(tmp_path / "base"), None, torch.float32, scores=True)
    plain.load_state_dict(ours.state_dict())
    ids, mask = rows()
    expected = plain(ids, attention_mask=mask).logits
    assert expected.shape == (4, 1) and expected.std() > 0
    assert torch.allclose(ours(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)
    shared = {"prompt_lengths": torch.full((4,), 7), "prompt_rows": torch.tensor([0, 0, 2, 2])}
    assert torch.allclose(ours(ids, attention_mask=mask, **shared).logits, expected, rtol=1e-4, atol=1e-5)
    save(ours, tmp_path / "saved")
    assert verify(tmp_path / "saved", ours) < 1e-4
    again = hybrid_ft.load(tmp_path / "saved")
    assert torch.allclose(again(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)
    if in_plain_transformers(ours.config):
        auto = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
        assert torch.allclose(auto.eval()(ids, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_new_head_is_its_seed_s_and_the_generator_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (hybrid_ft.load("tiny", scores=True, seed=seed).score.weight for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_classifier_of_several_labels_is_refused(tmp_path: Path) -> None:
    config = tiny_config("olmo3")
    config.num_labels = 3
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="num_labels is 3; must be 1"):
        hybrid_ft.load(tmp_path)


def test_an_architecture_without_a_base_model_of_its_own_is_refused() -> None:
    with pytest.raises(InputError, match="transformers has no reward model of Olmo3 and no base model of its own"):
        _generic(type(None), Olmo3ForCausalLM)


def test_scores_need_trained_weights() -> None:
    with pytest.raises(InputError, match="scores needs trained weights"):
        hybrid_ft.load("tiny", scores=True, from_scratch=True)
