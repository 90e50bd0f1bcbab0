"""Copies and pickles of a flat model are flat models."""

import copy
import io

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hybrid_ft.hybrid_model.families.known import family_of_type
from hybrid_ft.hybrid_model.lay_flat import is_flat, lay_flat
from hybrid_ft.hybrid_model.scorer import as_scorer, flat_scorer, scorer_class

PACKED = {"input_ids": torch.tensor([[5, 6, 7, 8, 9, 5, 6]]), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}


def made(kind):
    small = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**family_of_type(kind).tiny[kind], **small}))


def pickled(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("kind", ["olmo_hybrid", "qwen3_5_text"])
@pytest.mark.parametrize("again", [copy.deepcopy, pickled])
def test_a_model_comes_back_flat(kind, again):
    model = lay_flat(made(kind)).eval()
    back = again(model)
    assert is_flat(back) and [type(module) for module in back.modules()] == [type(module) for module in model.modules()]
    with torch.no_grad():
        assert torch.equal(back(**PACKED).logits, model(**PACKED).logits)
        back.model.embed_tokens.weight.zero_()
        assert model.model.embed_tokens.weight.any()


def test_a_class_that_no_name_leads_to_is_named():
    config = as_scorer(made("olmo_hybrid").config)
    with pytest.raises(Exception, match="OlmoHybridForSequenceClassification is made here .* save_pretrained"):
        pickled(flat_scorer(scorer_class(config)(config)))
