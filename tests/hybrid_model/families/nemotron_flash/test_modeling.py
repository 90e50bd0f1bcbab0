"""Nemotron-Flash against its equations, one token at a time in float64, and what a folder with foreign code does."""

import json
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.training.log_prob_head import use_own_head_on_cpu
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.nemotron_flash import family, meta_tokens, modeling
from hybrid_ft.hybrid_model.families.nemotron_flash.config import NemotronFlashConfig
from hybrid_ft.hybrid_model.flops import forward_flops

KIND = "nemotron_flash"
TOKENS = torch.randint(3, 128, (41,), generator=torch.Generator().manual_seed(0))


def normed(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def convolved(x, weight, bias=0.0):
    """x [T, D], weight [D, 1, W]."""
    width = weight.shape[-1]
    return F.silu(F.pad(x, (0, 0, width - 1, 0)).unfold(0, width, 1).mul(weight[:, 0]).sum(-1) + bias)


def delta_net(w, x, heads):
    q, k, v = (
        convolved(x @ w[f"{n}_proj.weight"].T, w[f"{n}_conv1d.weight"]).unflatten(-1, (heads, -1)) for n in "qkv"
    )
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    beta = (x @ w["b_proj.weight"].T).sigmoid()
    state, out = x.new_zeros(heads, k.shape[-1], v.shape[-1]), []
    for t in range(len(x)):
        read = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], beta[t, :, None] * (v[t] - read))
        out.append(torch.einsum("hkv,hk->hv", state, q[t]) * k.shape[-1] ** -0.5)
    return normed(torch.stack(out), w["o_norm.weight"], 1e-5).flatten(1) @ w["o_proj.weight"].T


def mamba_2(w, x, head, state_size):
    inner, heads = w["norm.weight"].numel(), w["D"].numel()
    z, xbc, dt = (x @ w["in_proj.weight"].T).split([inner, inner + 2 * state_size, heads], -1)
    values, b, c = convolved(xbc, w["conv1d.weight"], w["conv1d.bias"]).split([inner, state_size, state_size], -1)
    dt, values = F.softplus(dt + w["dt_bias"]), values.unflatten(-1, (heads, head))
    state, out = x.new_zeros(heads, head, state_size), []
    for t in range(len(x)):
        decay = (-dt[t] * w["A_log"].exp()).exp()
        state = decay[:, None, None] * state + torch.einsum("h,hp,n->hpn", dt[t], values[t], b[t])
        out.append(state @ c[t] + w["D"][:, None] * values[t])
    return normed(torch.stack(out).flatten(1) * F.silu(z), w["norm.weight"], 1e-5) @ w["out_proj.weight"].T


def attention(w, x, config, layer):
    size, groups = 16, config.num_attention_heads // config.num_key_value_heads
    q, k, v = ((x @ w[f"{n}_proj.weight"].T).unflatten(-1, (-1, size)) for n in "qkv")
    q, k = normed(q, w["q_norm.weight"], 1e-6), normed(k, w["k_norm.weight"], 1e-6)
    base = 10000.0 * (2 * 512 / 128 - 1) ** (size / (size - 2))
    angles = torch.arange(len(x)).double()[:, None] / base ** (torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(part):
        y = torch.complex(part[..., : size // 2], part[..., size // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    q, k, v = turned(q), turned(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = torch.empty_like(q)
    for t in range(len(x)):
        # in all layers but the global ones a query sees 16 tokens before its own
        first = 0 if layer == 5 else max(0, t - 16)
        scores = torch.einsum("hd,shd->hs", q[t], k[first : t + 1]) / math.sqrt(size)
        out[t] = torch.einsum("hs,shd->hd", scores.softmax(-1), v[first : t + 1])
    return out.flatten(1) @ w["o_proj.weight"].T


def by_its_equations(model, tokens):
    """Logits [T, vocabulary], from the released tensor names alone."""
    config, w = model.config, {name: tensor.double() for name, tensor in model.state_dict().items()}

    def under(prefix):
        return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}

    x = torch.cat([w["model.memory_tokens"], w["model.embed_tokens.weight"][tokens]])
    for layer, kind in enumerate(["deltanet", "f", "m2", "a", "deltanet", "a"]):
        of = under(f"model.layers.{layer}.")
        if kind != "f":
            y = normed(x, of["input_layernorm.weight"], 1e-6)
            if kind == "deltanet":
                x = x + delta_net(under(f"model.layers.{layer}.gla."), y, 4)
            elif kind == "m2":
                x = x + mamba_2(under(f"model.layers.{layer}.mamba."), y, 32, 16)
            else:
                x = x + attention(under(f"model.layers.{layer}.self_attn."), y, config, layer)
        y = normed(x, of["pre_ffn_layernorm.weight"], 1e-6)
        gate, up = y @ of["ffn.gate_proj.weight"].T, y @ of["ffn.up_proj.weight"].T
        x = x + (F.silu(gate) * up) @ of["ffn.down_proj.weight"].T
    x = normed(x, w["model.final_layernorm.weight"], 1e-6)[len(w["model.memory_tokens"]) :]
    head = w["lm_head.weight"]
    return x @ (head / head.norm(dim=1, keepdim=True)).T


@pytest.fixture(scope="module")
def models(plain_and_flat):
    return plain_and_flat(KIND)


@pytest.fixture(scope="module")
def true(models):
    return by_its_equations(models[0], TOKENS)


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(input_ids=tokens[None], use_cache=False).logits[0]


def test_both_forms_are_its_equations(models, true, relative):
    plain, flat = models
    assert relative(logits(plain), true) < 1e-5
    assert relative(logits(flat), true) < 1e-5


def undivided(model, out):
    return out * model.lm_head.weight.detach().norm(dim=1)


RULE = family.delta_over_levels
MISTAKES = {
    "logits not divided": lambda patch, model: lambda out: undivided(model, out),
    "beta up to 2": lambda patch, model: patch.setattr(
        family, "delta_over_levels", lambda qkv, g, beta, *rest: RULE(qkv, g, 2 * beta, *rest)
    ),
    "a decay": lambda patch, model: patch.setattr(
        family, "delta_over_levels", lambda qkv, g, beta, *rest: RULE(qkv, g - 0.05, beta, *rest)
    ),
    "documents that continue nothing": lambda patch, model: patch.setattr(
        meta_tokens, "behind_root", lambda layout, count: build_layout((count, *layout.lengths))
    ),
    "rope without its scaling": lambda patch, model: patch.setattr(model.config, "rope_type", "default"),
    "a window of one token less": lambda patch, model: patch.setattr(model.model.layers[3].self_attn, "window", 16),
    "a window in every layer": lambda patch, model: patch.setattr(model.model.layers[5].self_attn, "window", 17),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_would_be_seen(models, true, relative, monkeypatch, mistake):
    change = MISTAKES[mistake](monkeypatch, models[1])
    out = logits(models[1])
    assert relative(out if change is None else change(out), true) > 1e-4


def test_the_meta_tokens_are_computed_once_for_a_batch(models):
    seen = []
    handle = models[1].model.layers[0].register_forward_hook(lambda module, given, out: seen.append(out.shape[1]))
    logits(models[1], TOKENS)
    with torch.no_grad():
        models[1](input_ids=TOKENS[None], layout=build_layout([20, 20, 1]), use_cache=False)
    handle.remove()
    assert seen == [5 + 41, 5 + 41]


def test_they_count_in_the_operations(models):
    config = models[1].config
    with_them = forward_flops(config, [10, 4])
    without = forward_flops(NemotronFlashConfig.from_dict(config.to_dict() | {"num_memory_tokens": 0}), [10, 4])
    assert with_them.weights * 14 == without.weights * (14 + 5)
    pairs = sum(5 * n + n * (n + 1) // 2 for n in (10, 4)) + 5 * 6 // 2
    assert with_them.attention == without.attention // (10 * 11 // 2 + 4 * 5 // 2) * pairs
    assert with_them.head == without.head


def test_the_fused_head_divides_as_the_logits_are(plain_and_flat, relative):
    """Log-probabilities and the gradient of the head's weight, which the division is a part of."""
    model = plain_and_flat(KIND)[1]
    labels = TOKENS.clone()[None]
    want = logits_with_gradient(model).log_softmax(-1)[:-1].gather(1, TOKENS[1:, None])[:, 0]
    (by_logits,) = torch.autograd.grad(want.sum(), model.lm_head.weight)
    use_own_head_on_cpu(model)
    got = model(input_ids=TOKENS[None], labels=labels, fused_lm_head=True).log_probs[0]
    (by_head,) = torch.autograd.grad(got.sum(), model.lm_head.weight)
    assert relative(got, want) < 1e-5
    assert relative(by_head, by_logits) < 1e-4


def logits_with_gradient(model):
    return model(input_ids=TOKENS[None], use_cache=False).logits[0]


def test_a_folder_with_foreign_code_opens_and_its_code_is_not_run(models, tmp_path, relative):
    models[0].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    assert config["layer_types"] == ["deltanet", "f", "m2", "a", "deltanet", "a"] and "kinds" not in config
    config["auto_map"] = {
        "AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig",
        "AutoModelForCausalLM": "modeling_nemotron_flash.NemotronFlashForCausalLM",
    }
    config["attn_implementation_new"] = "flash_attention_2"
    path.write_text(json.dumps(config))
    for name in ("configuration", "modeling"):
        (tmp_path / f"{name}_nemotron_flash.py").write_text(f"raise SystemExit('{name} was run')")
    assert relative(logits(hybrid_ft.load(tmp_path)), logits(models[0])) < 1e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["deltanet", "x", "m2", "a", "a", "f"]}, "layer_types holds 'x'; must be of deltanet, m, m2"),
        ({"rope_type": "dynamic_ntk"}, "rope_type is 'dynamic_ntk'; must be one of None, default, ntk"),
        ({"orig_max_position_embeddings": None}, "orig_max_position_embeddings must be set where rope_type is ntk"),
        ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act is 'gelu'; must be one of silu, relu2"),
    ],
)
def test_configs_that_are_none_are_refused(models, tmp_path, change, said):
    (tmp_path / "config.json").write_text(json.dumps(models[0].config.to_dict() | change))
    with pytest.raises(InputError, match=said):
        hybrid_ft.load(tmp_path, from_scratch=True)


def test_a_random_model_starts_as_its_mixers_should():
    config = AutoConfig.for_model(KIND, vocab_size=64, pad_token_id=0, **family.FAMILY.tiny[KIND])
    model = modeling.NemotronFlashForCausalLM(config)
    dt = F.softplus(model.model.layers[2].mamba.dt_bias.detach())
    assert float(dt.min()) > 0.9e-3 and float(dt.max()) < 0.11
    assert 0.5 < float(model.model.memory_tokens.detach().std()) < 1.5
