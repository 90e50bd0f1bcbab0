"""A cache of fixed size gives the growing one's tokens, in place, and in a compiled graph without a break."""

import pytest
import torch
from transformers import CompileConfig, DynamicCache, StaticCache

from hybrid_ft.hybrid_model.door.cache_name import CACHE

TOKENS = torch.randint(1, 61, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[0, :3] = 0
GREEDY = {"attention_mask": MASK, "do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}


@pytest.fixture(scope="module", params=["no rope", "rope"])
def model(request, make_pair):
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}} if request.param == "rope" else {}
    return make_pair(seed=8, dtype=torch.float64, num_key_value_heads=2, **rope)[1]


def compiled():
    config = CompileConfig(backend="eager", mode=None, fullgraph=True, dynamic=False)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def addresses(cache):
    tensors = [x for layer in cache.layers for x in vars(layer).values() if isinstance(x, torch.Tensor)]
    states = [x for layer in cache.layers for kept in ("conv_states", "recurrent_states")
              if hasattr(layer, kept) for x in getattr(layer, kept).values()]  # fmt: skip
    return [x.data_ptr() for x in tensors + states]


@pytest.mark.parametrize("way", [{"num_beams": 3}, {"prefill_chunk_size": 4}, {"eos_token_id": [5, 17, 33]}])
def test_the_tokens_of_the_growing_cache(model, way):
    expected = model.generate(TOKENS, **GREEDY, **way)
    assert torch.equal(model.generate(TOKENS, cache_implementation="static", **GREEDY, **way), expected)


@pytest.mark.slow
def test_a_compiled_step_is_one_graph_for_all(make_pair):
    model = make_pair(seed=8, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])[1].double()
    expected = model.generate(TOKENS, **GREEDY)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert torch.equal(model.generate(TOKENS, **compiled(), **GREEDY), expected)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def conversation(model, cache):
    tokens = TOKENS[1:2]
    for turn in range(3):
        tokens = model.generate(tokens, **{CACHE: cache}, do_sample=False, max_new_tokens=6, pad_token_id=0)
        tokens = torch.cat([tokens, TOKENS[2:, : 3 - turn]], dim=1)
    return tokens


def test_a_conversation_goes_on_in_place_and_begins_again_after_a_reset(model):
    expected = conversation(model, DynamicCache(config=model.config))
    cache = StaticCache(config=model.config, max_cache_len=48)
    assert torch.equal(conversation(model, cache), expected)
    assert cache.is_compileable and cache.get_max_length() == 48 and cache.get_seq_length() == 31
    before = addresses(cache)
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(conversation(model, cache), expected)
    assert addresses(cache) == before and len(before) > 8


def test_rows_change_places_where_they_are(model):
    cache = model(TOKENS, attention_mask=MASK, past_key_values=StaticCache(config=model.config, max_cache_len=20))
    cache = cache.past_key_values
    before, order = addresses(cache), torch.tensor([2, 0, 0])
    cache.reorder_cache(order)
    assert addresses(cache) == before
    wanted = model(TOKENS[order], attention_mask=MASK[order], past_key_values=DynamicCache()).past_key_values
    new = torch.tensor([[7], [8], [9]])
    with torch.no_grad():
        got, expected = (model(new, past_key_values=each).logits for each in (cache, wanted))
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)
    cache.batch_select_indices(torch.tensor([1]))
    wanted.batch_select_indices(torch.tensor([1]))
    with torch.no_grad():
        got, expected = (model(new[:1], past_key_values=each).logits for each in (cache, wanted))
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_what_does_not_fit_is_refused_by_name(model):
    short = {CACHE: StaticCache(config=model.config, max_cache_len=12), "do_sample": False, "max_new_tokens": 10}
    with pytest.raises(ValueError, match="a static cache of max_cache_len 12 and 13 tokens a row are to go into it"):
        model.generate(TOKENS[1:], **short)
    cache = StaticCache(config=model.config, max_cache_len=9)
    with torch.no_grad():
        model(TOKENS, past_key_values=cache)
        with pytest.raises(ValueError, match="max_cache_len 9 and 10 tokens"):
            model(TOKENS[:, :1], past_key_values=cache)
        with pytest.raises(ValueError, match="holds 3 rows and the batch 2"):
            model(TOKENS[:2, :1], past_key_values=cache)
        cache.reset()
        with pytest.raises(ValueError, match="a static cache of 3 rows and the batch has 2; make a new one"):
            model(TOKENS[:2], past_key_values=cache)
    kinds = model.config.layer_types
    other = type(model.config)(**model.config.to_dict() | {"layer_types": [kinds[-1], *kinds[:-1]]})
    with pytest.raises(ValueError, match="a StaticCache of another model's config"):
        model(TOKENS, past_key_values=StaticCache(config=other, max_cache_len=12))
