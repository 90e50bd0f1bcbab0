"""The Gated DeltaNet layer beside transformers' own on the same weights: whole rows, forks, steps, released names."""

import copy

import pytest
import torch
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet as Theirs

from hybrid_ft.hybrid_model.door.cache import DeltaCache
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.layers.gated_delta_net import OlmoHybridGatedDeltaNet


@pytest.fixture(scope="module")
def pair(make_pair):
    """transformers' mixer and ours, in float64."""
    plain, ours = make_pair(seed=4, dtype=torch.float64, linear_num_key_heads=2)
    return plain.model.layers[0].linear_attn, ours.model.layers[0].linear_attn


def hidden(tokens, seed=0):
    return torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(ours, lengths, parents, x, cache=None):
    layout = build_layout(lengths, parents)
    return layout.flat(ours(layout.formed(x), layout, cache))


def test_segments_are_rows_of_their_own_in_transformers(pair, in_float64, relative):
    theirs, ours = pair
    assert isinstance(theirs, Theirs) and isinstance(ours, OlmoHybridGatedDeltaNet)
    x = hidden(5 + 1 + 70)
    with in_float64(), torch.no_grad():
        rows = [theirs(row[None])[0] for row in x.split([5, 1, 70])]
    assert relative(flat(ours, [5, 1, 70], [-1, -1, -1], x), torch.cat(rows)) < 1e-11


def test_a_segment_goes_on_from_its_parent_with_its_gradient(pair, relative):
    ours, lengths = pair[1], [4, 3, 2]
    x = hidden(9).requires_grad_()
    got = flat(ours, lengths, [-1, 0, 0], x)
    prompt, first, second = x.split(lengths)
    both = [flat(ours, [4 + len(one)], [-1], torch.cat([prompt, one])) for one in (first, second)]
    wanted = torch.cat([both[0][:4], both[0][4:], both[1][4:]])
    assert relative(got, wanted) < 1e-12
    weight = hidden(9, seed=1)
    gradients = [torch.autograd.grad((out * weight).sum(), x, retain_graph=True)[0] for out in (got, wanted)]
    assert relative(*gradients) < 1e-11


def test_a_step_goes_on_from_what_a_cache_holds(pair, relative):
    ours, x = pair[1], hidden(12)
    whole = flat(ours, [12], [-1], x)
    cache = DeltaCache()
    with torch.no_grad():
        flat(ours, [9], [-1], x[:9], cache)
        steps = [ours(one[None, None], None, cache)[0] for one in x[9:]]
    assert relative(torch.cat(steps), whole[9:]) < 1e-12


def test_the_released_names_of_the_convolutions_are_read(pair):
    ours = copy.deepcopy(pair[1])
    state = ours.state_dict()
    parts = state.pop("conv1d.weight").split(ours.widths)
    for part, weight in zip("qkv", parts, strict=True):
        state[f"{part}_conv1d.weight"] = weight + 1
    ours.load_state_dict(state)
    assert torch.equal(ours.conv1d.weight, pair[1].conv1d.weight + 1)
