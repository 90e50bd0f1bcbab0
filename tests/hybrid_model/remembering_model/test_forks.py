"""A tree of segments against its paths, each computed as a row of its own."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hybrid_ft.hybrid_model.door.layout import build_layout, tree_layout

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.fixture(scope="module", params=[pytest.param("float32", marks=pytest.mark.slow), "float64", "float64 rope"])
def model(request, make_pair):
    dtype, *rope = request.param.split()
    fields = {"num_key_value_heads": 2, "linear_num_key_heads": 2} | ({"rope_parameters": ROPE} if rope else {})
    return make_pair(seed=5, dtype=getattr(torch, dtype), **fields)[1]


def path(parents, segment):
    return [] if segment < 0 else [*path(parents, parents[segment]), segment]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def assert_tree_equals_rows(model, relative, assert_gradients):
    """Each token's logits, and the gradients of a sum that weighs each token once, whatever the number of paths.

    The rows are computed in float64: in float32 the gradients of their sum are further from it than the tree's.
    """
    exact = copy.deepcopy(model).double()

    def check(lengths, parents, seed=0):
        generator = torch.Generator().manual_seed(seed)
        tokens = [torch.randint(1, 61, (n,), generator=generator) for n in lengths]
        weights = [torch.randn(n, 61, generator=generator).to(model.dtype) for n in lengths]
        layout, order = tree_layout(lengths, parents)
        logits = model(torch.cat(tokens)[order][None], layout=layout).logits[0]
        got = torch.empty_like(logits).index_copy(0, order, logits)
        tree_gradients = gradients(model, (got * torch.cat(weights)).sum())

        expected = []
        for s, length in enumerate(lengths):
            if length:
                row = torch.cat([tokens[a] for a in path(parents, s)])
                expected.append(exact(row[None], use_cache=False).logits[0, -length:])
        row_gradients = gradients(exact, (torch.cat(expected) * torch.cat(weights).double()).sum())
        assert relative(got, torch.cat(expected)) < TOLERANCE[model.dtype]
        assert_gradients(tree_gradients, row_gradients, TOLERANCE[model.dtype])

    return check


TREES = {
    "a pair": ([20, 7, 9], [-1, 0, 0]),
    "answers of one token": ([30, 1, 1], [-1, 0, 0]),
    "a prompt of one token": ([1, 5, 70], [-1, 0, 0]),
    "an empty prompt": ([0, 6, 8], [-1, 0, 0]),
    "an empty answer": ([12, 0, 8], [-1, 0, 0]),
    "depth three": ([65, 3, 64, 1, 2, 20], [-1, 0, 0, 1, 1, 3]),
    "children first": ([4, 5, 10, 3], [2, 2, -1, 0]),
    "an empty link": ([9, 0, 4, 2], [-1, 0, 1, 1]),
    "several trees": ([10, 3, 4, 80, 5, 70, 6], [-1, 0, 0, -1, 3, 3, -1]),
    "many answers": ([40] + [3] * 9, [-1] + [0] * 9),
}


@pytest.mark.parametrize("tree", TREES)
def test_tree_equals_its_rows(assert_tree_equals_rows, tree):
    assert_tree_equals_rows(*TREES[tree])


def test_a_prompt_of_a_thousand_tokens(assert_tree_equals_rows):
    assert_tree_equals_rows([1000, 300, 1], [-1, 0, 0])


@pytest.mark.parametrize("model", ["float64 rope"], indirect=True)
@given(data=st.data(), count=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_random_trees_in_any_order(assert_tree_equals_rows, data, count, seed):
    parents = [data.draw(st.integers(-1, s - 1)) for s in range(count)]
    lengths = [data.draw(st.sampled_from([0, 1, 2, 3, 7, 30, 64, 65])) for _ in range(count)]
    lengths[0] = max(lengths[0], 1)
    shuffled = data.draw(st.permutations(range(count)))
    place = {s: i for i, s in enumerate(shuffled)} | {-1: -1}
    assert_tree_equals_rows([lengths[s] for s in shuffled], [place[parents[s]] for s in shuffled], seed)


def test_gradient_checkpointing_of_a_tree(model, assert_gradients):
    lengths, parents = TREES["depth three"]
    layout, _ = tree_layout(lengths, parents)
    tokens = torch.randint(1, 61, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    model.train()
    expected = gradients(model, model(tokens, layout=layout).logits.square().sum())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    got = gradients(model, model(tokens, layout=layout).logits.square().sum())
    model.gradient_checkpointing_disable()
    model.eval()
    assert_gradients(got, expected, TOLERANCE[model.dtype])


def test_a_layout_stands_alone(model):
    layout = build_layout([2, 1], [-1, 0])
    with pytest.raises(ValueError, match="of 3 tokens in one row; the batch is \\(1, 4\\)"):
        model(torch.ones(1, 4, dtype=torch.long), layout=layout)
    with pytest.raises(ValueError, match="no attention_mask and no cache"):
        model(torch.ones(1, 3, dtype=torch.long), layout=layout, attention_mask=torch.ones(1, 3))
