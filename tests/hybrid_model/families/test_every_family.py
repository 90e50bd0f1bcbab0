"""Every family: a document is the same alone in plain transformers, padded, packed, forked and computed again."""

import warnings

import pytest
import torch

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.known import family_of

TOLERANCE = 1e-5
GRADIENTS = 2e-5  # between two computations in float32, each within 1e-5
PACKED_LENGTHS = [23, 1, 29, 2, 70]  # one token, fewer than a convolution's, more than a chunk


def documents(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 128, (n,), generator=generator) for n in lengths]


def alone(model, tokens):
    return model(input_ids=tokens[None], use_cache=False).logits[0]


def weighted(logits, seed=1):
    """A sum that weighs every logit otherwise."""
    generator = torch.Generator().manual_seed(seed)
    return sum((piece * torch.randn(piece.shape, generator=generator)).sum() for piece in logits)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def padded(rows, side):
    width = max(map(len, rows)) + 3
    ids, mask = torch.zeros(2, len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        ids[i, start : start + len(row)], mask[i, start : start + len(row)] = row, 1
    return ids, mask


@pytest.fixture(scope="module")
def expected(models):
    """Logits and gradients of the documents, each alone in plain transformers."""
    plain, _ = models
    logits = [alone(plain, row) for row in documents(PACKED_LENGTHS)]
    return [x.detach() for x in logits], gradients(plain, weighted(logits))


@pytest.mark.parametrize("form", ["packed", "left", "right"])
def test_documents_together_equal_documents_alone(models, expected, relative, assert_gradients, form):
    _, flat = models
    rows = documents(PACKED_LENGTHS)
    if form == "packed":
        positions = torch.cat([torch.arange(len(row)) for row in rows])
        out = flat(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]
        logits = out.split(PACKED_LENGTHS)
    else:
        ids, mask = padded(rows, form)
        out = flat(input_ids=ids, attention_mask=mask, use_cache=False).logits
        logits = [out[i][mask[i].bool()] for i in range(len(rows))]
    for got, want in zip(logits, expected[0], strict=True):
        assert relative(got, want) < TOLERANCE
    assert_gradients(gradients(flat, weighted(logits)), expected[1], GRADIENTS)


TREES = {
    "a pair": ([17, 23, 29], [-1, 0, 0]),
    "short answers": ([65, 2, 63], [-1, 0, 0]),
    "a prompt shorter than the convolution": ([2, 4, 5], [-1, 0, 0]),
    "three levels": ([9, 7, 5, 3], [-1, 0, 1, 1]),
    "an empty link": ([9, 0, 4, 5], [-1, 0, 1, 1]),
    "a tree beside a document": ([10, 40, 30, 20], [-1, -1, 0, 0]),
}


def path(parents, segment):
    return [] if segment < 0 else [*path(parents, parents[segment]), segment]


@pytest.mark.parametrize("tree", TREES)
def test_forks_equal_separate_rows(models, relative, assert_gradients, tree):
    plain, flat = models
    lengths, parents = TREES[tree]
    tokens, layout = documents(lengths), build_layout(lengths, parents)
    if not family_of(flat.config).forks:
        with pytest.raises(ValueError, match="cannot continue a segment: pass each row whole"):
            flat(input_ids=torch.cat(tokens)[None], layout=layout)
        return
    got = flat(input_ids=torch.cat(tokens)[None], layout=layout).logits[0].split(lengths)
    want = [
        alone(plain, torch.cat([tokens[a] for a in path(parents, s)]))[-n:] if n else got[s]
        for s, n in enumerate(lengths)
    ]
    for there, here in zip(want, got, strict=True):
        assert not len(here) or relative(here, there) < TOLERANCE
    whole = [s for s, n in enumerate(lengths) if n]
    there = gradients(plain, weighted([want[s] for s in whole]))
    assert_gradients(gradients(flat, weighted([got[s] for s in whole])), there, GRADIENTS)


@pytest.mark.parametrize("lengths", [(1, 1, 2), (3, 4, 1), (64, 1, 1)])
def test_forks_of_one_token(models, relative, assert_gradients, lengths):
    """Where Mamba-2's single step would have neither a gradient nor the scan's lower bound of the time step."""
    plain, flat = models
    if not family_of(flat.config).forks:
        pytest.skip("its forks are refused")
    prompt, a, b = documents(lengths)
    got = flat(input_ids=torch.cat([prompt, a, b])[None], layout=build_layout(lengths, [-1, 0, 0])).logits[0]
    got = got.split(lengths)[1:]
    want = [alone(plain, torch.cat([prompt, answer]))[len(prompt) :] for answer in (a, b)]
    for here, there in zip(got, want, strict=True):
        assert relative(here, there) < TOLERANCE
    assert_gradients(gradients(flat, weighted(got)), gradients(plain, weighted(want)), GRADIENTS)


def test_a_link_of_one_token(models, relative):
    """It hands its state on; with gradients it does, or is refused in one line."""
    plain, flat = models
    if not family_of(flat.config).forks:
        pytest.skip("its forks are refused")
    lengths = (9, 1, 5)
    tokens = documents(lengths)
    batch = {"input_ids": torch.cat(tokens)[None], "layout": build_layout(lengths, [-1, 0, 1])}
    with torch.no_grad():
        got = flat(**batch).logits[0]
        there = alone(plain, torch.cat(tokens))
    # the link itself is one step of Mamba-2
    assert relative(got, there) < (5e-4 if flat.config.model_type in ("nemotron_h", "zamba2") else TOLERANCE)
    try:
        loss = weighted([flat(**batch).logits[0]])
    except ValueError as error:
        assert "a segment of one token that continues another and is continued itself has no gradient" in str(error)
    else:
        gradients(flat, loss)


def test_shared_prompts_of_a_trainer_equal_rows(models, relative):
    """Where a family cannot fork, every row is computed whole."""
    plain, flat = models
    prompt, a, b = documents((17, 9, 12))
    ids, mask = padded([torch.cat([prompt, a]), torch.cat([prompt, b])], "right")
    shared = {"prompt_lengths": torch.tensor([17, 17]), "prompt_rows": torch.tensor([0, 0])}
    with torch.no_grad():
        got = flat(input_ids=ids, attention_mask=mask, use_cache=False, **shared).logits
        for i, answer in enumerate((a, b)):
            assert relative(got[i][mask[i].bool()], alone(plain, torch.cat([prompt, answer]))) < TOLERANCE


def test_recomputed_layers_see_their_own_layout(models, assert_gradients):
    """As in DPO, where the reference's forward runs between the policy's forward and its backward."""
    _, flat = models
    lengths = (17, 23, 29)
    layout = build_layout(lengths, [-1, 0, 0] if family_of(flat.config).forks else None)
    tokens = torch.cat(documents(lengths))[None]
    want = gradients(flat, weighted([flat(input_ids=tokens, layout=layout).logits]))
    flat.train()
    flat.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        logits = flat(input_ids=tokens, layout=layout).logits
        with torch.no_grad():
            flat(input_ids=torch.cat(documents((40, 29)))[None], layout=build_layout((40, 29)))
        got = gradients(flat, weighted([logits]))
    finally:
        flat.gradient_checkpointing_disable()
        flat.eval()
    assert_gradients(got, want, 1e-6)


def test_the_same_experts_are_chosen(models):
    plain, flat = models
    rows = documents(PACKED_LENGTHS)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        out = flat(input_ids=torch.cat(rows)[None], layout=build_layout(PACKED_LENGTHS), output_router_logits=True)
        routers = out.get("router_logits")
        if not routers:
            pytest.skip("it has no experts")
        parts = [layer.split(PACKED_LENGTHS) for layer in routers]
        for i, row in enumerate(rows):
            there = plain(input_ids=row[None], use_cache=False, output_router_logits=True).router_logits
            for layer, want in zip(parts, there, strict=True):
                want = want.flatten(0, -2)
                assert torch.equal(layer[i].topk(2).indices.sort().values, want.topk(2).indices.sort().values)


def test_generation_with_left_padding_and_cache_equals_growing_without_cache(models):
    plain, flat = models
    rows = documents((17, 23), seed=4)
    ids, mask = padded(rows, "left")
    with warnings.catch_warnings(action="ignore"):
        got = flat.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    for row, answer in zip(rows, got[:, ids.shape[1] :], strict=True):
        with torch.no_grad():
            for token in answer:
                assert token == alone(plain, row)[-1].argmax()
                row = torch.cat([row, token[None]])


def test_packed_rows_fill_no_cache(models):
    _, flat = models
    positions = torch.cat([torch.arange(4), torch.arange(5)])[None]
    cache = flat(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True)["past_key_values"]
    cache.reset()
    with pytest.raises(ValueError, match="packed rows cannot fill a cache"):
        flat(input_ids=torch.ones(1, 9, dtype=torch.long), position_ids=positions, past_key_values=cache)
