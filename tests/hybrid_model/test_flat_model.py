"""A base model of transformers' own layers as its batches' door: forms in and out, and what it refuses."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.known import family_of_type
from hybrid_ft.hybrid_model.lay_flat import lay_flat

KIND = "lfm2"
ROWS = [torch.randint(3, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in (7, 1, 12)]


@pytest.fixture(scope="module")
def pair():
    """transformers' model and ours on the same weights."""
    tokens = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(KIND, **tokens | dict(family_of_type(KIND).tiny[KIND]))
    plain = AutoModelForCausalLM.from_config(config).double().eval()
    return plain, lay_flat(copy.deepcopy(plain))


@pytest.fixture(scope="module")
def alone(pair):
    """Each document's hidden states in plain transformers."""
    with torch.no_grad():
        return [pair[0].model(row[None], use_cache=False, output_hidden_states=True) for row in ROWS]


def padded():
    width = max(map(len, ROWS)) + 2
    ids, mask = (torch.zeros(len(ROWS), width, dtype=torch.long) for _ in range(2))
    for i, row in enumerate(ROWS):
        ids[i, 1 : 1 + len(row)], mask[i, 1 : 1 + len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def near(got, wanted):
    return got.dtype == wanted.dtype and torch.allclose(got, wanted, rtol=1e-7, atol=1e-8)


def test_padded_rows_come_back_as_they_were_given_with_zeros_at_padding(pair, alone):
    batch = padded()
    with torch.no_grad():
        found = pair[1].model(**batch, use_cache=False, output_hidden_states=True)
    for i, one in enumerate(alone):
        for got, wanted in zip(found.hidden_states, one.hidden_states, strict=True):
            assert near(got[i, 1 : 1 + len(ROWS[i])], wanted[0])
    assert not bool(found.last_hidden_state[batch["attention_mask"] == 0].any())


@pytest.mark.parametrize("form", ["positions", "layout", "embeddings"])
def test_a_packed_row_is_its_documents_in_each_form(pair, alone, form):
    ids = torch.cat(ROWS)[None]
    given = {"layout": build_layout([len(row) for row in ROWS])}
    if form != "layout":
        given = {"position_ids": torch.cat([torch.arange(len(row)) for row in ROWS])[None]}
    given |= {"inputs_embeds": pair[1].get_input_embeddings()(ids)} if form == "embeddings" else {"input_ids": ids}
    with torch.no_grad():
        got = pair[1].model(**given, use_cache=False).last_hidden_state[0]
    assert near(got, torch.cat([one.last_hidden_state[0] for one in alone]))


def test_places_that_are_kept_come_back_alone(pair, alone):
    batch = padded()
    keep = batch["attention_mask"].bool()
    with torch.no_grad():
        found = pair[1].model(**batch, keep_positions=keep).last_hidden_state
    assert near(found[0], torch.cat([one.last_hidden_state[0] for one in alone]))


def test_a_plain_tuple_is_given_where_it_is_asked_for(pair):
    given = {"input_ids": ROWS[0][None], "use_cache": False}
    with torch.no_grad():
        as_tuple = pair[1].model(**given, return_dict=False)
        assert type(as_tuple) is tuple
        assert near(as_tuple[0], pair[1].model(**given).last_hidden_state)


def test_who_watches_the_embedding_sees_rows_and_not_one_long_one(pair):
    seen = []
    handle = pair[1].get_input_embeddings().register_forward_hook(lambda module, given, out: seen.append(out.shape))
    with torch.no_grad():
        pair[1].model(**padded(), use_cache=False)
    handle.remove()
    assert seen and all(shape[0] == 1 and shape[1] in {7, 1, 12} or shape[0] == 3 for shape in seen)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": ROWS[0][None], "inputs_embeds": torch.zeros(1, 7, 64)}, "exactly one of input_ids"),
        ({"input_ids": ROWS[0][None], "output_attentions": True}, "attention weights of .* are not formed here"),
        (
            {"input_ids": torch.cat(ROWS)[None], "layout": build_layout([7, 13]), "past_key_values": "empty"},
            "packed rows cannot fill a cache",
        ),
        ({"input_ids": ROWS[0][None], "past_key_values": "filled"}, None),
    ],
)
def test_what_it_cannot_do_is_refused(pair, given, said):
    given = dict(given)
    if given.get("past_key_values") == "empty":
        given["past_key_values"] = DynamicCache(config=pair[1].config)
    if given.get("past_key_values") == "filled":
        cache = pair[1](ROWS[2][None], use_cache=True).past_key_values
        with torch.no_grad():
            both = [model(torch.cat([ROWS[2], ROWS[0]])[None], use_cache=False).logits[0, -7:] for model in pair]
            assert near(pair[1](**given | {"past_key_values": cache}).logits[0], both[0])
        return
    with pytest.raises(ValueError, match=said):
        pair[1].model(**given)
