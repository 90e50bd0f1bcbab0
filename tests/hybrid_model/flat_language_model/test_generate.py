"""Generation with a cache gives the tokens that plain transformers gives."""

import pytest
import torch
from transformers import Cache, DynamicCache

from hybrid_ft.hybrid_model.door.cache_name import CACHE

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
CONFIGS = {
    "no rope": {"num_key_value_heads": 2},
    "rope": {"num_key_value_heads": 2, "rope_parameters": ROPE, "linear_num_key_heads": 2},
}


@pytest.fixture(scope="module", params=[pytest.param("no rope", marks=pytest.mark.slow), "rope"])
def pair(request, make_pair):
    """In float64, where two nearly equal logits cannot change places by rounding."""
    return make_pair(seed=8, dtype=torch.float64, **CONFIGS[request.param])


@pytest.fixture
def same(pair, in_float64):
    """Both models' answer to the same call, checked to be equal; returned."""
    plain, ours = pair

    def check(call):
        with in_float64():
            expected, got = call(plain), call(ours)
        assert torch.equal(got, expected)
        return got

    return check


def prompts(rows, tokens, seed=0):
    return torch.randint(1, 61, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def left_padded(lengths, seed=0):
    width = max(lengths)
    input_ids, mask = prompts(len(lengths), width, seed), torch.ones(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, : width - length] = 0
        input_ids[row, : width - length] = 0
    return {"input_ids": input_ids, "attention_mask": mask}


GREEDY = {"do_sample": False, "max_new_tokens": 24}


@pytest.mark.parametrize("tokens", [1, 2, 5, 70])
def test_greedy(same, tokens):
    same(lambda model: model.generate(prompts(2, tokens), **GREEDY))


def test_greedy_batched_with_left_padding_and_alone(same, pair):
    batch = left_padded([9, 1, 70, 4])
    together = same(lambda model: model.generate(**batch, **GREEDY))
    for row, length in enumerate([9, 1, 70, 4]):
        alone = pair[1].generate(batch["input_ids"][row : row + 1, -length:], **GREEDY)
        assert torch.equal(together[row, -24:], alone[0, -24:])


def test_rows_that_end_early(same):
    same(lambda model: model.generate(**left_padded([9, 3, 20]), **GREEDY, eos_token_id=[5, 17, 33], pad_token_id=0))


def test_beam_search(same):
    same(lambda model: model.generate(**left_padded([6, 11]), num_beams=4, do_sample=False, max_new_tokens=12))


def test_sampling_with_a_seed(same):
    def call(model):
        torch.manual_seed(0)
        return model.generate(**left_padded([6, 11]), do_sample=True, top_k=0, temperature=1.3, max_new_tokens=20)

    same(call)


def test_a_conversation_of_three_turns_on_one_cache(same, pair):
    def call(model, cached=True):
        cache = DynamicCache(config=model.config) if cached else None
        tokens = prompts(1, 7)
        for turn in range(3):
            tokens = model.generate(tokens, **{CACHE: cache}, **GREEDY)
            tokens = torch.cat([tokens, prompts(1, 5, seed=turn + 1)], dim=1)
        return tokens

    talk = same(call)
    assert torch.equal(call(pair[1], cached=False), talk)


def test_padding_between_the_turns_of_a_batch(pair, relative):
    """Every row continues its own history, whatever columns the batch leaves empty in it."""
    model = pair[1]
    rows = [[prompts(1, n, seed=n)[0] for n in turns] for turns in ([4, 1, 6], [9, 3, 1], [1, 5, 2])]
    cache, mask = DynamicCache(), torch.zeros(3, 0, dtype=torch.long)
    for turn in range(3):
        width = max(len(row[turn]) for row in rows) + 1
        input_ids = torch.zeros(3, width, dtype=torch.long)
        new = torch.zeros(3, width, dtype=torch.long)
        for i, row in enumerate(rows):
            input_ids[i, width - len(row[turn]) :] = row[turn]
            new[i, width - len(row[turn]) :] = 1
        mask = torch.cat([mask, new], dim=1)
        output = model(input_ids, attention_mask=mask, past_key_values=cache)
    assert output.past_key_values is cache
    for i, row in enumerate(rows):
        alone = model(torch.cat(row)[None], use_cache=False).logits[0]
        assert relative(output.logits[i, -len(row[-1]) :], alone[-len(row[-1]) :]) < 1e-12


@pytest.mark.parametrize("gradients", [False, True])
def test_token_by_token_equals_all_at_once(pair, relative, gradients):
    model = pair[1]
    tokens = prompts(2, 70)
    cache = DynamicCache()
    with torch.set_grad_enabled(gradients):
        steps = [model(tokens[:, t : t + 1], past_key_values=cache).logits for t in range(70)]
    assert steps[-1].requires_grad == gradients
    assert relative(torch.cat(steps, dim=1), model(tokens, use_cache=False).logits) < 1e-12
    assert cache.get_seq_length() == 70


def test_embeddings_in_place_of_tokens(pair):
    model = pair[1]
    tokens = prompts(2, 6)
    embedded = model.generate(inputs_embeds=model.get_input_embeddings()(tokens), **GREEDY)
    assert torch.equal(embedded, model.generate(tokens, **GREEDY)[:, 6:])


def test_hidden_states_are_those_of_transformers(pair, in_float64, relative):
    batch = left_padded([5, 8])
    with in_float64():
        expected, got = (model(**batch, output_hidden_states=True, use_cache=False).hidden_states for model in pair)
    assert len(got) == len(expected) == 4
    real = batch["attention_mask"].bool()
    for ours, theirs in zip(got, expected):
        assert relative(ours[real], theirs[real]) < 1e-12


def test_a_training_model_makes_no_cache_unless_told(pair):
    model = pair[1].train()
    try:
        assert model(prompts(1, 3)).past_key_values is None
        assert model(prompts(1, 3), use_cache=True).past_key_values is not None
    finally:
        model.eval()
    assert model(prompts(1, 3)).past_key_values is not None
    assert model(prompts(1, 3), use_cache=False).past_key_values is None


def test_what_cannot_be_cached_is_refused(pair):
    model = pair[1]
    packed = {"input_ids": prompts(1, 4), "position_ids": torch.tensor([[0, 1, 0, 1]])}
    assert model(**packed).past_key_values is None
    with pytest.raises(ValueError, match="packed rows cannot fill a cache"):
        model(**packed, past_key_values=DynamicCache())
    cache = model(prompts(1, 3)).past_key_values
    with pytest.raises(ValueError, match="packed rows cannot continue a cache"):
        model(**packed, past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask is \(1, 4\); with 3 columns in the cache and 4 new ones"):
        model(prompts(1, 4), attention_mask=torch.ones(1, 4), past_key_values=cache)
    with pytest.raises(TypeError, match="a Cache; a hybrid keeps its past in a DynamicCache or a StaticCache"):
        model(prompts(1, 3), past_key_values=Cache(layers=[]))
    with pytest.raises(ValueError, match="past_key_values would be offloaded"):
        model(prompts(1, 3), past_key_values=DynamicCache(offloading=True))
    with pytest.raises(RuntimeError, match="cannot be rolled back"):
        cache.crop(-1)
    filled = pair[0](prompts(1, 3)).past_key_values
    with pytest.raises(ValueError, match="filled by another model"):
        model(prompts(1, 1), past_key_values=filled)


def test_embeddings_of_one_new_place_beside_ids_and_a_filled_cache(same, pair):
    """A caller may put an embedding of its own where the last id stands."""
    other = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def call(model):
        cache = model(prompts(2, 6), use_cache=True, past_key_values=DynamicCache(config=model.config)).past_key_values
        whole = torch.cat([model.get_input_embeddings()(prompts(2, 6)), other], dim=1)
        return model.generate(prompts(2, 7), inputs_embeds=whole, past_key_values=cache, **GREEDY)

    found = same(call)
    assert not torch.equal(found, pair[1].generate(prompts(2, 7), **GREEDY))


def test_embeddings_alone_continue_a_filled_cache(same):
    def call(model):
        cache = model(prompts(2, 6), use_cache=True, past_key_values=DynamicCache(config=model.config)).past_key_values
        whole = model.get_input_embeddings()(prompts(2, 9))
        return model.generate(inputs_embeds=whole, past_key_values=cache, **GREEDY)

    same(call)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_training_model_with_checkpointing_answers_as_in_evaluation(make_pair, reentrant):
    model = make_pair(seed=8)[1]
    expected = model.generate(prompts(2, 6), **GREEDY)
    model.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert torch.equal(model.generate(prompts(2, 6), **GREEDY), expected)


def test_right_padded_prompts_continue_their_rows_with_and_without_a_cache(pair):
    model = pair[1]
    tokens, lengths = prompts(3, 9), [9, 4, 6]
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).long()
    for use_cache in (True, False):
        got = model.generate(tokens * mask, attention_mask=mask, use_cache=use_cache, **GREEDY)[:, 9:]
        for row, length in enumerate(lengths):
            alone = model.generate(tokens[row : row + 1, :length], **GREEDY)[0, length:]
            assert torch.equal(got[row], alone)
