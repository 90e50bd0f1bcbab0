"""What a batch's forms leave to the layers, to a cache and to who watches the embedding."""

import math

import pytest
import torch
from transformers import DynamicCache
from transformers.integrations.neftune import neftune_post_forward_hook


def rows(lengths, side="right"):
    width = max(lengths)
    tokens = torch.randint(1, 61, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    places = torch.arange(width)
    counts = torch.tensor(lengths)[:, None]
    mask = (places < counts if side == "right" else places >= width - counts).long()
    return tokens * mask, mask


def padded(side):
    tokens, mask = rows([40, 9, 9], side)
    return {"input_ids": tokens, "attention_mask": mask}, [40] * 40 + [9] * 18


def packed():
    bound = torch.cat([torch.arange(40), torch.arange(9), torch.arange(9)])[None]
    return {"input_ids": torch.arange(1, 59)[None], "position_ids": bound}, [40] * 40 + [9] * 18


def pairs():
    """Two rows share a prompt of 6 tokens; each gets the noise of its own length."""
    tokens, mask = rows([40, 9, 9])
    tokens[1, :6] = tokens[0, :6]
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "prompt_lengths": torch.tensor([6, 6, 0]),
        "prompt_rows": torch.tensor([0, 0, 2]),
    }, [40] * 40 + [9] * 18


BATCHES = {
    "padded left": lambda: padded("left"),
    "padded right": lambda: padded("right"),
    "packed": packed,
    "pairs": pairs,
}


@pytest.mark.parametrize("form", BATCHES)
def test_neftune_adds_noise_by_the_length_of_each_document(make_pair, form):
    """Uniform in alpha / sqrt(length * width), whatever the batch around the document."""
    model = make_pair()[1].train()
    batch, lengths = BATCHES[form]()
    batch |= {"output_hidden_states": True, "use_cache": False}
    real = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    clean = model.model(**batch).hidden_states[0][real]
    embed = model.get_input_embeddings()
    embed.neftune_noise_alpha = 5.0
    embed.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(0)
    noise = (model.model(**batch).hidden_states[0][real] - clean).detach().abs()
    for length in (40, 9):
        limit = 5 / math.sqrt(length * 32)
        of_length = noise[torch.tensor(lengths) == length]
        assert 0.97 * limit < float(of_length.max()) <= limit * 1.0001
        assert float(of_length.mean()) == pytest.approx(limit / 2, rel=0.1)
    model.eval()
    assert torch.equal(model.model(**batch).hidden_states[0][real], clean)


def test_a_hook_on_the_embedding_changes_nothing_else(make_pair, relative, assert_gradients):
    """Documents go through it one length at a time and come back in their order."""
    results = []
    for watched in (False, True):
        model = make_pair(seed=1, dtype=torch.float64)[1].train()
        if watched:
            model.get_input_embeddings().register_forward_hook(lambda *_: None)
        logits = torch.cat([model(**make()[0]).logits.flatten(0, 1) for make in BATCHES.values()])
        logits.square().sum().backward()
        results.append((logits, {name: parameter.grad for name, parameter in model.named_parameters()}))
    (expected, gradients), (got, own) = results
    assert relative(got, expected) < 1e-12
    assert_gradients(own, gradients, 1e-11)


def test_checkpointing_s_mark_on_the_embedding_leaves_prompts_shared(make_pair):
    """LoRA with checkpointing hooks the embedding so that its result wants a gradient; no row differs by that."""
    model = make_pair()[1].train()
    model.enable_input_require_grads()
    sizes = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape))
    assert model.model(**pairs()[0], use_cache=False).last_hidden_state.requires_grad
    model.get_input_embeddings().register_forward_hook(lambda *_: None)
    model.model(**pairs()[0], use_cache=False)
    assert sizes == [(1, 40 + 9 + 9 - 6, 32), (3, 40, 32)]


def test_an_empty_batch_and_a_cache_of_other_rows_are_refused(make_pair):
    model = make_pair()[1]
    for shape in ((1, 0), (0, 3)):
        with pytest.raises(ValueError, match="it must hold at least one token"):
            model(torch.ones(shape, dtype=torch.long))
    cache = model(torch.ones(2, 3, dtype=torch.long)).past_key_values
    for columns in (1, 2):
        with torch.no_grad(), pytest.raises(ValueError, match="past_key_values holds 2 rows and the batch 3"):
            model(torch.ones(3, columns, dtype=torch.long), past_key_values=cache)


def test_a_filled_cache_shows_what_transformers_cache_shows(make_pair, in_float64):
    """Keys and values of the columns in use, also after rows are chosen or repeated."""
    tokens = torch.arange(1, 9).view(2, 4)
    found = []
    with in_float64():
        for model in make_pair(seed=1, dtype=torch.float64):
            cache = model(tokens, past_key_values=DynamicCache(config=model.config)).past_key_values
            model(tokens[:, :1], past_key_values=cache)
            shown = [cache.layers[1].keys, cache.layers[1].values]
            cache.layers[1].batch_repeat_interleave(2)
            cache.layers[1].batch_select_indices(torch.tensor([3, 0]))
            found.append([*shown, cache.layers[1].keys, cache.layers[1].values])
    for theirs, ours in zip(*found):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_rows_of_a_cache_are_chosen_and_repeated(make_pair):
    model = make_pair(seed=1)[1]
    tokens = torch.arange(1, 13).view(3, 4)
    with torch.no_grad():
        whole = model(tokens, past_key_values=DynamicCache()).past_key_values
        whole.batch_select_indices(torch.tensor([2, 0]))
        whole.batch_repeat_interleave(2)
        got = model(torch.full((4, 1), 7), past_key_values=whole).logits
        for row, source in enumerate((2, 2, 0, 0)):
            cache = model(tokens[source : source + 1], past_key_values=DynamicCache()).past_key_values
            alone = model(torch.full((1, 1), 7), past_key_values=cache).logits
            assert torch.allclose(got[row], alone[0], rtol=1e-5, atol=1e-5)
