"""The Qwen layers of our own: grouped values, and the mistakes that no shape check would see."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch

from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.qwen import layers as qwen
from hybrid_ft.hybrid_model.layers import delta_levels

TOKENS = torch.randint(3, 128, (80,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["qwen3_next", "qwen3_5_text"])
def models(request, plain_and_flat):
    return plain_and_flat(request.param)


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS[None], use_cache=False).logits


@pytest.mark.parametrize("heads", [(16, 16, 2, 2), (16, 32, 2, 6), (32, 16, 1, 4)], ids=str)
def test_heads_of_every_ratio(plain_and_flat, relative, heads):
    names = ("linear_key_head_dim", "linear_value_head_dim", "linear_num_key_heads", "linear_num_value_heads")
    plain, flat = plain_and_flat("qwen3_5_text", **dict(zip(names, heads)))
    assert relative(logits(flat), logits(plain)) < 1e-5


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next"])
def test_another_activation_of_the_convolution(plain_and_flat, relative, kind):
    plain, flat = plain_and_flat(kind, hidden_act="gelu")
    rows = TOKENS.split([30, 50])
    with torch.no_grad():
        got = flat(input_ids=TOKENS[None], layout=build_layout([30, 50])).logits[0].split([30, 50])
        for row, out in zip(rows, got, strict=True):
            assert relative(out, plain(input_ids=row[None], use_cache=False).logits[0]) < 1e-5


def flat_split(mixer, x):
    H, HV, K, V = mixer.num_k_heads, mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim
    q, k, v, z = mixer.in_proj_qkvz(x).split([H * K, H * K, HV * V, HV * V], dim=-1)
    _, _, b, a = PROJECT(mixer, x)
    return torch.cat([q, k, v], dim=-1), z, b, a


def flat_gates(mixer, x):
    qkv, z, _, _ = PROJECT(mixer, x)
    return qkv, z, *mixer.in_proj_ba(x).chunk(2, dim=-1)


def exchanged(mixer, x):
    qkv, z, b, a = PROJECT(mixer, x)
    return qkv, z, a, b


def repeated(q, k, *rest, **options):
    times = rest[0].shape[2] // q.shape[2]
    return RULE(q.repeat(1, 1, times, 1), k.repeat(1, 1, times, 1), *rest, **options)


PROJECT, RULE = qwen.project, delta_levels.gated_delta_rule
NORM, GATED, GATES = qwen.rms_norm, qwen.gated_rms_norm, qwen.delta_gates
MISTAKES = {
    "norms scaled by their weight": (qwen, "rms_norm", lambda x, w, eps: NORM(x, w - 1, eps)),
    "gated norm scaled by 1 + weight": (qwen, "gated_rms_norm", lambda o, z, w, eps: GATED(o, z, 1 + w, eps=eps)),
    "gated norm with eps 1e-5": (qwen, "gated_rms_norm", lambda o, z, w, eps: GATED(o, z, w, eps=1e-5)),
    "beta up to 2": (qwen, "delta_gates", lambda *x, **_: GATES(*x, allow_neg_eigval=True)),
    "a and b exchanged": (qwen, "project", exchanged),
    "q, k, v and z not split by key head": (qwen, "project", flat_split),
    "a and b not split by key head": (qwen, "project", flat_gates),
    "key heads repeated in turn": (delta_levels, "gated_delta_rule", repeated),
    "no l2 norm of q and k": (
        delta_levels,
        "gated_delta_rule",
        lambda *x, **options: RULE(*x, use_qk_l2norm=False, **options),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_be_seen(models, relative, monkeypatch, mistake):
    plain, flat = models
    if "split by" in mistake and flat.config.model_type != "qwen3_next":
        pytest.skip("its projections are flat")
    assert relative(logits(flat), logits(plain)) < 1e-5
    module, name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(module, name, wrong)
    assert relative(logits(flat), logits(plain)) > 1e-3


def query_and_gate_split_flat(attention, monkeypatch):
    weight = attention.q_proj.weight
    halves = weight.detach().unflatten(0, (2, -1, attention.head_dim)).transpose(0, 1)
    monkeypatch.setattr(weight, "data", halves.reshape(weight.shape))


def gate_of(function):
    """In the attention's place of ``torch.sigmoid``."""

    def change(attention, monkeypatch):
        module = sys.modules[type(attention).__module__]
        monkeypatch.setattr(module, "torch", SimpleNamespace(**vars(torch) | {"sigmoid": function}))

    return change


GATE_MISTAKES = {
    "query and gate not split by head": query_and_gate_split_flat,
    "no output gate": gate_of(torch.ones_like),
    "SiLU for sigmoid in the output gate": gate_of(torch.nn.functional.silu),
}


@pytest.mark.parametrize("mistake", GATE_MISTAKES)
def test_each_mistake_of_gated_attention_would_be_seen(models, relative, monkeypatch, mistake):
    plain, flat = models
    want = logits(plain)
    assert relative(logits(flat), want) < 1e-5
    GATE_MISTAKES[mistake](flat.model.layers[-1].self_attn, monkeypatch)
    assert relative(logits(flat), want) > 1e-3


def test_rope_over_the_whole_head_would_be_seen(models, relative, monkeypatch):
    plain, flat = models
    config = copy.deepcopy(flat.config)
    config.rope_parameters["partial_rotary_factor"] = 1.0
    monkeypatch.setattr(flat.model, "rotary_emb", type(flat.model.rotary_emb)(config))
    assert relative(logits(flat), logits(plain)) > 1e-3


def test_the_auxiliary_loss_of_experts_is_that_of_the_real_tokens(plain_and_flat, relative):
    """Over the tokens of all documents: in plain transformers of a padded batch with its mask."""
    plain, flat = plain_and_flat("qwen3_5_moe_text")
    rows = TOKENS[:30].split([12, 18])
    ids, mask = torch.zeros(2, 2, 18, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    want = plain(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True).aux_loss
    padded = flat(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True).aux_loss
    packed = flat(input_ids=TOKENS[None, :30], layout=build_layout([12, 18]), output_router_logits=True).aux_loss
    assert relative(padded, want) < 1e-5
    assert relative(packed, want) < 1e-5
