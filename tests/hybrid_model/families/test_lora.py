"""Every family: sets of LoRA layers by name, a gradient in each adapted matrix, merged weights
that compute the same."""

import json
import re
from collections import Counter

import pytest
import torch
from torch import nn

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.adapters import add_lora, target_modules
from hybrid_ft.hybrid_model.checkpoint.adapter_start import open_adapter
from hybrid_ft.hybrid_model.checkpoint.merge_in_memory import merge_in_memory
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.named_modules import weights_of, whole_modules
from tests.hybrid_model.families.conftest import EVERY

TOKENS = torch.arange(3, 40)[None]


@pytest.fixture(params=EVERY)
def model(request, plain_and_flat):
    return plain_and_flat(request.param)[1]


def adapted(model):
    return {name for name, module in model.named_modules() if hasattr(module, "lora_A")}


def set_names(model):
    return [*family_of(model.config).lora(model.config), "all-linear"]


def test_the_sets_share_no_layer_and_hold_every_matrix_that_is_not_refused(model):
    """Each linear layer is in one set, or it is refused by name, or it is the head."""
    family = family_of(model.config)
    sets = {name: re.compile(target_modules(name, model.config)) for name in family.lora(model.config)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            homes = [of for of, pattern in sets.items() if pattern.fullmatch(name)]
            refused = any(re.search(pattern, name) for pattern in family.refused)
            assert len(homes) == (0 if refused or name == "lm_head" else 1), name
    assert all(Counter(of for n, _ in model.named_modules() for of, p in sets.items() if p.fullmatch(n)).values())


def test_every_adapted_matrix_has_a_gradient_and_merging_changes_nothing(model, relative):
    """On Mamba's ``out_proj`` too, which a fused kernel would leave out."""
    trained = add_lora(model, "all-linear", rank=2, alpha=4).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if "lora_B" in name:
                p.copy_(0.1 * torch.randn(p.shape, generator=generator))
    out = trained(input_ids=TOKENS, use_cache=False).logits
    out.square().sum().backward()
    for name, p in trained.named_parameters():
        assert p.requires_grad == ("lora_" in name), name
        assert not p.requires_grad or float(p.grad.norm()) > 0, name
    pattern = re.compile(target_modules("all-linear", trained.get_base_model().config))
    names = {name.removeprefix("base_model.model.") for name in adapted(trained)}
    assert names and all(pattern.fullmatch(name) for name in names)
    assert names == {
        name.removeprefix("base_model.model.").removesuffix(".base_layer")
        for name, module in trained.named_modules()
        if isinstance(module, nn.Linear)
        and pattern.fullmatch(name.removeprefix("base_model.model.").removesuffix(".base_layer"))
    }
    merged = trained.eval().merge_and_unload()
    assert relative(merged(input_ids=TOKENS, use_cache=False).logits, out) < 1e-5


def test_experts_are_adapted_by_name(model, relative):
    family = family_of(model.config)
    if not family.experts:
        with pytest.raises(InputError, match="has no routed experts; use one of all-linear"):
            add_lora(model, "experts")
        return
    for kind, said in (
        ({"dora": True}, "model.lora.dora: got true"),
        ({"layers": [0]}, "model.lora.layers: PEFT adapts"),
    ):
        with pytest.raises(InputError, match=said):
            add_lora(model, "attention+experts", **kind)
    before = model(input_ids=TOKENS, use_cache=False).logits.detach()
    trained = add_lora(model, "attention+experts", rank=2, alpha=4)
    out = trained(input_ids=TOKENS, use_cache=False).logits
    assert relative(out, before) < 1e-6
    out.square().sum().backward()
    names = {name for name, p in trained.named_parameters() if p.requires_grad and "experts" in name}
    assert names and not any("shared" in name for name in names)
    assert all(dict(trained.named_parameters())[name].grad is not None for name in names)


def test_an_adapter_of_experts_opens_and_is_merged(model, plain_and_flat, relative, tmp_path, request):
    family = family_of(model.config)
    if not family.experts:
        return
    kind = request.node.callspec.params["model"]
    trained = add_lora(model, "mlp+experts" if "mlp" in set_names(model) else "experts", rank=2, alpha=6)
    with torch.no_grad():
        for name, p in trained.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    trained.save_pretrained(str(tmp_path), save_embedding_layers=False)
    expected = trained.eval()(input_ids=TOKENS, use_cache=False).logits
    settings = json.loads((tmp_path / "adapter_config.json").read_text()) | {"base_model_name_or_path": "here"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    opened = open_adapter(plain_and_flat(kind)[1], tmp_path)
    assert relative(opened(input_ids=TOKENS, use_cache=False).logits, expected) < 1e-6
    merged = plain_and_flat(kind)[1]
    merge_in_memory(merged, tmp_path)
    assert relative(merged(input_ids=TOKENS, use_cache=False).logits, expected) < 1e-5
    settings["r"] = 3
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    for opening in (open_adapter, merge_in_memory):
        with pytest.raises(InputError, match=r"has rank 2, adapter_config.json says (r is )?3"):
            opening(plain_and_flat(kind)[1], tmp_path)


@pytest.mark.parametrize("name", ["mlp.gate", "in_proj_a", "lm_head", "conv1d"])
def test_other_layers_are_refused_with_the_choices(plain_and_flat, name):
    model = plain_and_flat("qwen3_next")[1]
    with pytest.raises(InputError, match="cannot be adapted.*; use one of all-linear, attention, delta, experts"):
        add_lora(model, name)


LACKING = {
    "granitemoehybrid": ({"layer_types": ["full_attention"] * 4, "num_local_experts": 0}, ["recurrent", "experts"]),
    "nemotron_h": ({"layers_block_type": ["linear_attention"] * 2}, ["attention", "mlp", "experts"]),
    "lfm2_moe": ({"num_dense_layers": 4, "layer_types": ["conv"] * 4}, ["attention", "experts"]),
    "jamba": ({"num_experts": 1}, ["experts"]),
    "qwen3_5_text": ({"layer_types": ["linear_attention"] * 4}, ["attention"]),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_set_of_which_this_model_has_no_layer_is_refused(plain_and_flat, kind):
    """Though others of its architecture have some: PEFT would say so in a traceback, or adapt nothing."""
    fields, lacking = LACKING[kind]
    model = plain_and_flat(kind, **fields)[1]
    has = next(name for name in family_of(model.config).lora(model.config) if name not in lacking)
    for name in lacking:
        for targets in (name, f"{has}+{name}"):
            with pytest.raises(InputError, match="use one of all-linear, ") as raised:
                target_modules(targets, model.config)
            choice = str(raised.value).partition("use one of ")[2].removesuffix(", or several joined by +").split(", ")
            assert has in choice and not set(lacking) & set(choice)
    assert target_modules(has, model.config)


def test_what_is_refused_as_a_router_is_not_trained_whole_either(model):
    reasons = family_of(model.config).refused.items()
    for name in weights_of(model.config):
        if any(re.search(pattern, name) and "router" in reason for pattern, reason in reasons):
            with pytest.raises(InputError, match="a router, which stays as it was trained"):
                whole_modules([re.escape(name)], model.config, adapted=r"(?!)")


def test_layers_that_hold_nothing_of_a_set_are_refused(plain_and_flat):
    config = plain_and_flat("qwen3_5_text")[1].config
    for chosen in ({"targets": "delta"}, {"targets": "all-linear", "modules": ["in_proj_z"]}):
        assert target_modules(**chosen, config=config, layers=[0, 3])
        with pytest.raises(InputError, match="^model.lora.layers: got .*; none of them has what model.lora"):
            target_modules(**chosen, config=config, layers=[3])


def test_routers_and_modules_of_several_layers_are_not_trained_whole(plain_and_flat):
    moe = plain_and_flat("qwen3_5_moe_text")[1]
    with pytest.raises(InputError, match=r"layers.0.mlp.gate, a router, which stays as it was trained"):
        add_lora(moe, modules_to_save=["mlp.gate"])
    with pytest.raises(InputError, match=r"layers.0.mlp.gate, which cannot be adapted: a router stays as it was"):
        add_lora(moe, modules=["mlp.gate"])
    with pytest.raises(InputError, match=r"shares its weight with .*; leave it out"):
        add_lora(plain_and_flat("zamba2")[1], modules_to_save=["shared_transformer.input_layernorm"])
