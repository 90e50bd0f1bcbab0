"""Nemotron-Flash against its equations, one token at a time in float64, and what a folder with foreign code does."""

import json

import pytest
import torch
from nemotron_equations import attention, delta_net, mamba_2, normed
from torch.nn import functional as F
from transformers import AutoConfig

import hybrid_ft
from hybrid_ft.finetune.training.log_prob_head import use_own_head_on_cpu
from hybrid_ft.hybrid_model.door.layout import build_layout
from hybrid_ft.hybrid_model.families.nemotron_flash import family, meta_tokens, modeling

KIND = "nemotron_flash"
TOKENS = torch.randint(3, 128, (41,), generator=torch.Generator().manual_seed(0))


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


def test_a_random_model_starts_as_its_mixers_should():
    config = AutoConfig.for_model(KIND, vocab_size=64, pad_token_id=0, **family.FAMILY.tiny[KIND])
    model = modeling.NemotronFlashForCausalLM(config)
    dt = F.softplus(model.model.layers[2].mamba.dt_bias.detach())
    assert float(dt.min()) > 0.9e-3 and float(dt.max()) < 0.11
    assert 0.5 < float(model.model.memory_tokens.detach().std()) < 1.5
