import re

import pytest
import torch

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapters import adapted_names, add_lora, target_modules

ATTENTION = {f"self_attn.{part}_proj" for part in "qkvo"}
DELTA = {f"linear_attn.{part}_proj" for part in "qkvgo"}
MLP = {f"mlp.{part}_proj" for part in ("gate", "up", "down")}
SETS = {
    "attention": ATTENTION,
    "delta": DELTA,
    "mlp": MLP,
    "all-linear": ATTENTION | DELTA | MLP,
    "delta+mlp": DELTA | MLP,
    "mlp+attention": ATTENTION | MLP,
    "attention+attention": ATTENTION,
    "recurrent": DELTA,
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_adapts_its_layers_and_nothing_else(make_pair, name):
    model = add_lora(make_pair()[1], name, rank=2, alpha=4, dropout=0.0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_A" in n or "lora_B" in n for n in trained)
    assert {re.search(r"layers\.\d+\.(.*)\.lora_", n)[1] for n in trained} == SETS[name]


@pytest.mark.parametrize("name", ["lm_head", "conv1d", "", "delta+", "all-linear+mlp", "A_log"])
def test_an_unknown_name_is_refused_with_the_choices(make_config, name):
    with pytest.raises(InputError, match="cannot be adapted.*; use one of all-linear, attention, delta, mlp, or"):
        target_modules(name, make_config())


def test_a_projection_that_is_left_out_on_purpose_is_refused_with_the_reason(make_config):
    with pytest.raises(InputError, match="'linear_attn.a_proj' cannot be adapted: it sets the decay and the writing"):
        target_modules("linear_attn.a_proj", make_config())
    with pytest.raises(InputError, match="Olmo Hybrid has no routed experts; use one of"):
        target_modules("delta+experts", make_config())


def test_output_is_unchanged_until_the_first_step_and_the_base_stays(make_pair):
    base = make_pair()[1]
    tokens = torch.arange(1, 30)[None]
    expected = base(tokens, use_cache=False).logits.detach()
    frozen = {name: parameter.detach().clone() for name, parameter in base.named_parameters()}
    model = add_lora(base, "all-linear", rank=4, alpha=8)
    assert torch.equal(model(tokens, use_cache=False).logits, expected)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=10.0)
    model(tokens, use_cache=False).logits.square().mean().backward()
    optimizer.step()
    assert not torch.allclose(model(tokens, use_cache=False).logits, expected)
    with model.disable_adapter():
        assert torch.equal(model(tokens, use_cache=False).logits, expected)
    for name, parameter in base.named_parameters():
        if "lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace("base_layer.", "")])


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_under_lora_gives_the_same_gradients(make_pair, assert_gradients, reentrant):
    tokens = torch.randint(1, 61, (1, 90), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": tokens, "position_ids": torch.cat([torch.arange(40), torch.arange(50)])[None]}
    model = add_lora(make_pair(dtype=torch.float64)[1], "all-linear", rank=4, alpha=8).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)

    def gradients():
        model.zero_grad()
        model(**batch).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_gradients(gradients(), expected, 1e-12)


@pytest.mark.parametrize("name", SETS)
def test_names_adapt_what_the_pattern_did(make_pair, name):
    """PEFT finds the same layers by the names; ``q_proj`` alone would be both kinds' where one is adapted."""
    from peft import LoraConfig, get_peft_model

    by_pattern = add_lora(make_pair()[1], name, rank=2, alpha=4)
    names = adapted_names(by_pattern)
    assert len(names) < 12
    by_names = get_peft_model(make_pair()[1], LoraConfig(r=2, target_modules=names, task_type="CAUSAL_LM"))
    assert [n for n, _ in by_names.named_parameters()] == [n for n, _ in by_pattern.named_parameters()]
    assert ("q_proj" in names) == (SETS[name] >= {"self_attn.q_proj", "linear_attn.q_proj"})


def test_single_layers_are_named_in_full(make_pair):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        make_pair()[1], LoraConfig(r=2, target_modules=r".*layers\.1\.self_attn\.q_proj|.*2\.mlp.*proj")
    )
    assert adapted_names(model) == ["2.mlp.down_proj", "2.mlp.gate_proj", "2.mlp.up_proj", "self_attn.q_proj"]


KINDS = {
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "layers": {"layers": [0, 2]},
    "all of them": {"rslora": True, "dora": True, "layers": [1, 2]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_adapters_train_merge_and_open_in_plain_peft(make_pair, tmp_path, kind):
    """A gradient in every adapted matrix; then the merged model, and plain transformers with PEFT, give the same."""
    from peft import PeftModel

    plain, base = make_pair(seed=1)
    tokens = torch.randint(1, 61, (1, 40), generator=torch.Generator().manual_seed(0))
    before = base(tokens, use_cache=False).logits.detach()
    model = add_lora(base, "all-linear", rank=4, alpha=8, **KINDS[kind]).train()
    assert (model(tokens, use_cache=False).logits - before).norm() < 1e-5 * before.norm()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model(tokens, use_cache=False).logits.square().mean().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in trained.values())
    assert any("magnitude" in name for name in trained) == ("dora" in KINDS[kind])
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.05 * parameter.abs().mean() * parameter.grad.sign()
    assert {int(re.search(r"layers\.(\d+)\.", name)[1]) for name in trained} == set(
        KINDS[kind].get("layers", range(plain.config.num_hidden_layers))
    )
    model.eval()
    expected = model(tokens, use_cache=False).logits.detach()
    assert (expected - before).norm() > 0.01 * before.norm()
    greedy = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(
        model.generate(input_ids=tokens, **greedy), model.generate(input_ids=tokens, use_cache=False, **greedy)
    )
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    reopened = PeftModel.from_pretrained(plain, tmp_path).eval()
    assert (reopened(tokens, use_cache=False).logits - expected).norm() < 1e-5 * expected.norm()
    merged = model.merge_and_unload()
    assert (merged(tokens, use_cache=False).logits - expected).norm() < 1e-5 * expected.norm()


def test_rslora_scales_by_the_root_of_the_rank(make_pair):
    scales = {
        rslora: next(
            module.scaling["default"]
            for module in add_lora(make_pair()[1], rank=16, alpha=8, rslora=rslora).modules()
            if hasattr(module, "scaling")
        )
        for rslora in (False, True)
    }
    assert scales == {False: 0.5, True: 2.0}


def test_layers_beyond_the_model_are_refused(make_config):
    config = make_config()
    count = config.num_hidden_layers
    with pytest.raises(InputError, match=f"model.lora.layers: got {count}; the model has layers 0 to {count - 1}"):
        target_modules("all-linear", config, [0, count])
