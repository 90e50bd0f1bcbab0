"""Merged in memory: the adapted model's logits in plain transformers, in its base's own layout."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.merge_in_memory import merge_in_memory
from hybrid_ft.hybrid_model.checkpoint.save import save
from hybrid_ft.hybrid_model.families.known import family_of_type

TOKENS = torch.arange(3, 60)[None]


def logits(model):
    with torch.no_grad():
        return model.eval()(TOKENS, use_cache=False).logits


def merged(base, folder):
    """The adapter in ``folder`` on its base, as plain transformers opens what was saved."""
    model = hybrid_ft.load(base)
    merge_in_memory(model, folder / "adapter")
    save(model, folder / "out")
    opened, info = AutoModelForCausalLM.from_pretrained(folder / "out", output_loading_info=True)
    assert not any(info.values())
    return opened


@pytest.fixture(params=["qwen3_next", "falcon_h1", "granitemoehybrid"])
def base(request, tmp_path, tiny_tokenizer):
    sizes = family_of_type(request.param).tiny[request.param] | {"vocab_size": 128, "eos_token_id": 0}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **sizes)).eval()
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_model_is_the_adapted_one(base, tmp_path, relative, dora):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["o_proj"], use_dora=dora)
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    opened = merged(base, tmp_path)
    assert relative(logits(opened), logits(adapted)) < 1e-5
    assert relative(logits(opened), logits(AutoModelForCausalLM.from_pretrained(base))) > 1e-4


@pytest.mark.filterwarnings("ignore")
def test_a_larger_vocabulary_is_merged_into_the_base_s_own_layout(base, tmp_path, relative):
    """PEFT saves the whole embedding then, and the head."""
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(192, mean_resizing=False)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["o_proj"])).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    opened = merged(base, tmp_path)
    assert opened.config.vocab_size == 192
    assert relative(logits(opened), logits(adapted)) < 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_files_hold_in_several_is_merged_by_the_command(tmp_path, tiny_tokenizer, relative, capsys):
    """Kimi Linear's three convolutions are one in memory."""
    tokens = {"vocab_size": 128, "eos_token_id": 0, "pad_token_id": 1}
    sizes = family_of_type("kimi_linear").tiny["kimi_linear"] | tokens
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("kimi_linear", **sizes)).save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(plain, LoraConfig(r=2, target_modules=["o_proj"], modules_to_save=["conv1d"])).eval()
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    command = ["merge", str(tmp_path / "adapter"), str(tmp_path / "out")]
    assert cli.main([*command, "--dtype", "bfloat16"]) == 2
    assert "this adapter is merged in its base's dtypes; leave it out" in " ".join(capsys.readouterr().err.split())
    assert cli.main(command) == 0
    assert "is merged in memory" in " ".join(capsys.readouterr().out.split())
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert relative(logits(opened), logits(adapted)) < 1e-5
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == [3, 0]


@pytest.mark.filterwarnings("ignore")
def test_a_weight_that_several_layers_share_is_refused(tmp_path):
    """Zamba2's transformer block is one tensor under several names, and PEFT gives each name factors of its own."""
    config = AutoConfig.for_model("zamba2", **family_of_type("zamba2").tiny["zamba2"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    model = hybrid_ft.load(tmp_path / "base")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match="adapts one weight in several layers"):
        merge_in_memory(model, tmp_path / "adapter")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
