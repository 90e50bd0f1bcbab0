"""Every family: a document is the same alone in plain transformers, padded, packed, forked and computed again."""

import copy
import warnings
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.known import family_of

TOLERANCE = 1e-5
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


def rows_alone(model, rows):
    return [alone(model, tokens)[-n:] for tokens, n in rows]


@pytest.fixture(scope="module")
def precise(models):
    """Both in float64."""
    both = [copy.deepcopy(model).double() for model in models]
    for model in both:
        model.set_experts_implementation("eager")  # the grouped product has no float64
    return both


@contextmanager
def all_in_float64():
    """What transformers casts to float32, norms and softmax above all, is cast to float64."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "float32", torch.float64)
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield


@pytest.fixture
def assert_as_alone(models, precise, relative, assert_gradients):
    """
    ``logits_of`` gives a model's logits of some tokens, a piece for each of ``rows``, which are (tokens, n): those
    tokens alone, of which the last n count. Logits are compared in float32; gradients in float64, as a row's smallest
    are differences of large terms: two ways to compute them in float32 are up to 3e-5 apart.
    """

    def check(logits_of, rows):
        with torch.no_grad():
            for got, want in zip(logits_of(models[1]), rows_alone(models[0], rows), strict=True):
                assert relative(got, want) < TOLERANCE
        plain, flat = precise
        with all_in_float64():
            want = gradients(plain, weighted(rows_alone(plain, rows)))
            got = gradients(flat, weighted(logits_of(flat)))
        assert_gradients(got, want, TOLERANCE)

    return check


@pytest.mark.parametrize("form", ["packed", "left", "right"])
def test_documents_together_equal_documents_alone(assert_as_alone, form):
    rows = documents(PACKED_LENGTHS)

    def logits_of(flat):
        if form == "packed":
            positions = torch.cat([torch.arange(len(row)) for row in rows])
            out = flat(input_ids=torch.cat(rows)[None], position_ids=positions[None], use_cache=False).logits[0]
            return out.split(PACKED_LENGTHS)
        ids, mask = padded(rows, form)
        out = flat(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return [out[i][mask[i].bool()] for i in range(len(rows))]

    assert_as_alone(logits_of, [(row, len(row)) for row in rows])


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
def test_forks_equal_separate_rows(models, assert_as_alone, tree):
    _, flat = models
    lengths, parents = TREES[tree]
    tokens, layout = documents(lengths), build_layout(lengths, parents)
    if not family_of(flat.config).forks:
        with pytest.raises(ValueError, match="cannot continue a segment: pass each row whole"):
            flat(input_ids=torch.cat(tokens)[None], layout=layout)
        return

    def logits_of(flat):
        pieces = flat(input_ids=torch.cat(tokens)[None], layout=layout).logits[0].split(lengths)
        return [piece for piece in pieces if len(piece)]

    assert_as_alone(
        logits_of, [(torch.cat([tokens[a] for a in path(parents, s)]), n) for s, n in enumerate(lengths) if n]
    )


@pytest.mark.parametrize("lengths", [(1, 1, 2), (3, 4, 1), (64, 1, 1)])
def test_forks_of_one_token(models, assert_as_alone, lengths):
    """Where Mamba-2's single step would have neither a gradient nor the scan's lower bound of the time step."""
    _, flat = models
    if not family_of(flat.config).forks:
        pytest.skip("its forks are refused")
    prompt, a, b = documents(lengths)
    batch = {"input_ids": torch.cat([prompt, a, b])[None], "layout": build_layout(lengths, [-1, 0, 0])}
    rows = [(torch.cat([prompt, answer]), len(answer)) for answer in (a, b)]
    assert_as_alone(lambda flat: flat(**batch).logits[0].split(lengths)[1:], rows)


def test_a_link_of_one_token(models, assert_as_alone):
    """It hands its state on, exactly and with gradients, or is refused in one line."""
    _, flat = models
    if not family_of(flat.config).forks:
        pytest.skip("its forks are refused")
    lengths = (9, 1, 5)
    tokens = documents(lengths)
    batch = {"input_ids": torch.cat(tokens)[None], "layout": build_layout(lengths, [-1, 0, 1])}
    refused = "a segment of one token that continues another and is continued itself cannot be computed exactly"
    try:
        flat(**batch)
    except ValueError as error:
        assert refused in str(error)
        with torch.no_grad(), pytest.raises(ValueError, match=refused):
            flat(**batch)
        return
    assert_as_alone(lambda flat: [flat(**batch).logits[0]], [(torch.cat(tokens), sum(lengths))])


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


GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def test_a_training_model_with_checkpointing_answers_as_in_evaluation(models):
    flat = models[1]
    ids, mask = padded(documents((17, 23), seed=4), "left")
    with warnings.catch_warnings(action="ignore"):
        expected = flat.generate(ids, attention_mask=mask, **GREEDY)
        flat.train().gradient_checkpointing_enable({"use_reentrant": False})
        try:
            assert torch.equal(flat.generate(ids, attention_mask=mask, **GREEDY), expected)
        finally:
            flat.gradient_checkpointing_disable()
            flat.eval()


def test_right_padded_prompts_go_on_without_a_cache_alone(models):
    flat = models[1]
    rows = documents((17, 23), seed=4)
    ids, mask = padded(rows, "right")
    with warnings.catch_warnings(action="ignore"):
        got = flat.generate(ids, attention_mask=mask, use_cache=False, **GREEDY)[:, ids.shape[1] :]
        for row, answer in zip(rows, got, strict=True):
            assert torch.equal(flat.generate(row[None], use_cache=False, **GREEDY)[0, len(row) :], answer)
        if family_of(flat.config).remembers:
            assert torch.equal(flat.generate(ids, attention_mask=mask, **GREEDY)[:, ids.shape[1] :], got)
            return
        with pytest.raises(ValueError, match="pad on the left, or pass use_cache=False"):
            flat.generate(ids, attention_mask=mask, **GREEDY)


def test_a_cache_of_other_rows_and_an_empty_batch_are_refused(models):
    flat = models[1]
    cache = flat(torch.ones(2, 5, dtype=torch.long), use_cache=True)["past_key_values"]
    for shape, said in (((3, 1), "past_key_values holds 2 rows and the batch 3"), ((2, 0), "at least one token")):
        with pytest.raises(ValueError, match=said):
            flat(torch.ones(shape, dtype=torch.long), past_key_values=cache)
    with pytest.raises(ValueError, match="at least one token"):
        flat(torch.ones(0, 3, dtype=torch.long))


def test_a_hook_on_any_module_fires_and_changes_what_it_does_in_transformers(models, relative):
    found = []
    for model in models:
        calls = dict.fromkeys((name for name, _ in model.named_modules()), 0)

        def hook(name, calls=calls):
            def changed(module, inputs, out):
                calls[name] += 1
                return out * 1.01 if isinstance(out, torch.Tensor) else None

            return changed

        hooks = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
        with torch.no_grad():
            found.append((alone(model, documents((17,))[0]), calls))
        for each in hooks:
            each.remove()
    (want, theirs), (got, ours) = found
    assert ours == theirs
    assert relative(got, want) < 1e-4


def test_a_cache_of_fixed_size_gives_the_same_tokens(models):
    flat = models[1]
    ids, mask = padded(documents((17, 23), seed=4), "left")
    way = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with warnings.catch_warnings(action="ignore"):
        if family_of(flat.config).classes:
            with pytest.raises(ValueError, match="a StaticCache, which .* has no steps for"):
                flat.generate(ids, cache_implementation="static", **way)
            return
        expected = flat.generate(ids, **way)
        assert torch.equal(flat.generate(ids, cache_implementation="static", **way), expected)


def test_packed_rows_fill_no_cache(models):
    _, flat = models
    positions = torch.cat([torch.arange(4), torch.arange(5)])[None]
    cache = flat(input_ids=torch.ones(1, 2, dtype=torch.long), use_cache=True)["past_key_values"]
    cache.reset()
    with pytest.raises(ValueError, match="packed rows cannot fill a cache"):
        flat(input_ids=torch.ones(1, 9, dtype=torch.long), position_ids=positions, past_key_values=cache)
