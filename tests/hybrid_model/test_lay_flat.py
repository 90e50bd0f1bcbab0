"""What lay_flat leaves as it was, and what it refuses."""

import copy
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.known import family_of_type
from hybrid_ft.hybrid_model.lay_flat import is_flat, lay_flat


@pytest.fixture
def plain():
    config = AutoConfig.for_model("qwen3_5_text", vocab_size=64, **family_of_type("qwen3_5_text").tiny["qwen3_5_text"])
    return AutoModelForCausalLM.from_config(config).eval()


def test_names_stay_transformers_own(plain):
    flat = lay_flat(copy.deepcopy(plain))
    assert is_flat(flat) and not is_flat(plain)
    assert list(flat.state_dict()) == list(plain.state_dict())
    for (name, ours), (there, theirs) in zip(flat.named_modules(), plain.named_modules(), strict=True):
        assert (name, type(ours).__name__, type(ours).__module__) == (
            there,
            type(theirs).__name__,
            type(theirs).__module__,
        )


def test_what_it_saves_opens_in_plain_transformers(plain, tmp_path):
    flat = lay_flat(copy.deepcopy(plain))
    flat.save_pretrained(tmp_path)
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert opened.config._attn_implementation == "sdpa"
    tokens = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(tokens).logits, flat(tokens, use_cache=False).logits, atol=1e-5, rtol=1e-5)


def test_a_second_time_changes_nothing(plain):
    flat = lay_flat(plain)
    classes = [type(module) for module in flat.modules()]
    assert [type(module) for module in hybrid_ft.lay_flat(flat).modules()] == classes


def test_an_unknown_architecture_is_refused_with_the_list():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=8, **sizes))
    with pytest.raises(InputError, match="model_type is 'llama'; must be one of bailing_hybrid, bamba.*qwen3_5"):
        lay_flat(model)


def test_a_model_that_transformers_built_from_a_flat_yarn_config_is_refused():
    sizes = family_of_type("olmo3").tiny["olmo3"]
    yarn = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 5e5, "original_max_position_embeddings": 64}
    with warnings.catch_warnings(action="ignore"):
        config = AutoConfig.for_model("olmo3", vocab_size=64, rope_parameters=yarn, **sizes)
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(
        InputError, match="rope_parameters must hold full_attention and sliding_attention.*lost its YaRN"
    ):
        lay_flat(model)


def test_a_multimodal_model_is_refused():
    text = family_of_type("qwen3_5_text").tiny["qwen3_5_text"] | {"vocab_size": 64}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 64}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(InputError, match="open the text model alone, with Qwen3_5ForCausalLM"):
        lay_flat(model)
