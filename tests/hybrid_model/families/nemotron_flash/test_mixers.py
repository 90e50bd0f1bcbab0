"""Each mixer alone against its equation, in float64, whole and from a cache on."""

import copy

import pytest
import torch
from nemotron_equations import attention, delta_net, mamba_2
from torch.nn import functional as F
from transformers import DynamicCache

from hybrid_ft.hybrid_model.layers.padded_rows import seen_by_queries

X = torch.randn(37, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(models):
    return copy.deepcopy(models[0]).double()


def attended(model, layer, x):
    mixer = model.model.layers[layer].self_attn
    rope = model.model._rope(x[None], torch.arange(len(x))[None])
    return mixer(x[None], rope, seen_by_queries(torch.ones(1, len(x), dtype=torch.bool), len(x), mixer.window))[0]


@pytest.mark.parametrize("layer", [0, 2, 3, 5])
def test_a_row_is_what_the_equation_says(model, relative, layer):
    of = model.model.layers[layer]
    with torch.no_grad():
        if of.kind == "a":
            got, want = attended(model, layer, X), attention(of.self_attn.state_dict(), X, model.config, layer)
        elif of.kind == "m2":
            got, want = of.mamba(X[None])[0], mamba_2(of.mamba.state_dict(), X, 32, 16)
        else:
            got, want = of.gla(X[None])[0], delta_net(of.gla.state_dict(), X, 4)
    # norms, angles and the scans are taken in float32
    assert relative(got, want) < 1e-5


def test_the_delta_rule_goes_on_from_a_cache(model, relative):
    mixer, config = model.model.layers[0].gla, model.config
    with torch.no_grad():
        whole = mixer(X[None])
        cache = DynamicCache(config=config)
        parts = [mixer(part[None], cache_params=cache) for part in (X[:20], X[20:21], X[21:22], X[22:])]
    assert relative(torch.cat(parts, dim=1), whole) < 1e-5


def test_padding_before_a_row_changes_nothing_in_it(model, relative):
    mixer = model.model.layers[0].gla
    padded = torch.cat([torch.ones(5, 64, dtype=torch.float64), X])[None]
    mask = torch.tensor([[0] * 5 + [1] * len(X)])
    with torch.no_grad():
        assert relative(mixer(padded, attention_mask=mask)[:, 5:], mixer(X[None])) < 1e-5


def test_the_mlp_is_gated(model, relative):
    mlp = model.model.layers[0].ffn
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    with torch.no_grad():
        assert relative(mlp(X), (F.silu(X @ gate.T) * (X @ up.T)) @ down.T) < 1e-12
