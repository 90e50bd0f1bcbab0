"""The cache's two names: both reach our models, and transformers finds the one it looks for."""

import inspect

import pytest
import torch
from transformers import DynamicCache

import hybrid_ft
from hybrid_ft.hybrid_model.door.cache_name import CACHE, NEW, OLD, under_both_names


class Model:
    @under_both_names
    def forward(self, tokens: int, past_key_values: object = None, **kwargs: object) -> tuple:
        return tokens, past_key_values, kwargs


def test_both_names_arrive_as_one() -> None:
    assert Model().forward(1, past_key_values="filled") == (1, "filled", {})
    assert Model().forward(1, cache="filled") == (1, "filled", {})
    assert Model().forward(1, "filled", more=2) == (1, "filled", {"more": 2})
    assert Model().forward(tokens=1, cache=None, past_key_values="filled") == (1, "filled", {})


def test_two_caches_are_one_too_many() -> None:
    with pytest.raises(TypeError, match="got both past_key_values and cache"):
        Model().forward(1, past_key_values="filled", cache="another")


def test_the_signature_has_the_name_of_this_transformers() -> None:
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridForCausalLM

    assert CACHE in inspect.signature(OlmoHybridForCausalLM.forward).parameters
    assert list(inspect.signature(Model.forward).parameters) == ["self", "tokens", CACHE, "kwargs"]


@pytest.mark.parametrize("name", [OLD, NEW])
def test_a_model_fills_and_continues_the_cache_it_is_given(name: str) -> None:
    model = hybrid_ft.load("tiny", from_scratch=True).eval()
    tokens = torch.arange(2, 11).unsqueeze(0)
    cache = DynamicCache()
    with torch.no_grad():
        whole = model(tokens).logits[:, -1]
        filled = model(tokens[:, :-1], **{name: cache})
        assert filled[CACHE] is cache and cache.get_seq_length() == 8
        last = model(tokens[:, -1:], **{name: cache}).logits[:, -1]
        torch.testing.assert_close(last, whole, rtol=1e-5, atol=1e-5)
        base = model.model(tokens[:, :-1], **{name: DynamicCache()})
    assert base[CACHE].get_seq_length() == 8
