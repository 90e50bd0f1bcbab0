"""What lay_flat leaves as it was, and what it refuses."""

import copy
import math
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.integrations.neftune import neftune_post_forward_hook

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


def test_a_convolution_with_another_activation_is_refused():
    """transformers gives Olmo Hybrid's delta layers the MLP's activation."""
    sizes = family_of_type("olmo_hybrid").tiny["olmo_hybrid"] | {"pad_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model("olmo_hybrid", vocab_size=64, hidden_act="gelu", **sizes)
    with pytest.raises(InputError, match="hidden_act is 'gelu'; must be silu"):
        lay_flat(AutoModelForCausalLM.from_config(config))


def test_a_multimodal_model_is_refused():
    text = family_of_type("qwen3_5_text").tiny["qwen3_5_text"] | {"vocab_size": 64}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 64}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision)
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_config(config)
    with pytest.raises(InputError, match="open the text model alone, with Qwen3_5ForCausalLM"):
        lay_flat(model)


def test_neftune_adds_noise_by_the_length_of_each_document(plain):
    """Uniform in alpha / sqrt(length * width): not of the one row that the layers see."""
    flat = lay_flat(plain).train()
    tokens = torch.arange(1, 50)[None]
    batch = {"input_ids": tokens, "position_ids": torch.cat([torch.arange(40), torch.arange(9)])[None]}
    batch |= {"output_hidden_states": True, "use_cache": False}
    clean = flat.model(**batch).hidden_states[0]
    embed = flat.get_input_embeddings()
    embed.neftune_noise_alpha = 5.0
    embed.register_forward_hook(neftune_post_forward_hook)
    torch.manual_seed(0)
    noise = (flat.model(**batch).hidden_states[0] - clean).detach().abs()[0].split([40, 9])
    for length, of_length in zip((40, 9), noise, strict=True):
        limit = 5 / math.sqrt(length * of_length.shape[-1])
        assert 0.97 * limit < float(of_length.max()) <= limit * 1.0001
    flat.eval()
    assert torch.equal(flat.model(**batch).hidden_states[0], clean)


def test_a_label_that_its_document_does_not_predict_is_left_out(plain):
    """The first token of a packed document would be scored in the last state of the one before."""
    tokens = torch.arange(1, 21)[None]
    alone = [plain(part, labels=part).loss.item() * (part.shape[1] - 1) for part in tokens.split([12, 8], dim=1)]
    flat = lay_flat(plain)
    positions = torch.cat([torch.arange(12), torch.arange(8)])[None]
    got = flat(tokens, position_ids=positions, labels=tokens, use_cache=False).loss.item()
    assert got == pytest.approx(sum(alone) / 18, rel=1e-5)


def test_a_mask_of_pairs_says_where_documents_begin(plain):
    flat = lay_flat(plain)
    tokens = torch.arange(1, 21)[None]
    numbers = torch.tensor([0] * 12 + [1] * 8)
    pairs = ((numbers[:, None] == numbers) & torch.ones(20, 20).tril().bool())[None, None]
    with torch.no_grad():
        got = flat(tokens, attention_mask=pairs).logits
        assert torch.equal(got, flat(tokens, position_ids=torch.cat([torch.arange(12), torch.arange(8)])[None]).logits)
        assert not torch.allclose(got, flat(tokens).logits, atol=1e-3)
        with pytest.raises(ValueError, match="cannot fill a cache, nor rows that .* come with a mask of pairs"):
            flat(tokens, attention_mask=pairs, past_key_values=DynamicCache(config=flat.config))


@pytest.mark.parametrize("use_cache", [False, True])
def test_attention_weights_are_refused_and_not_left_out(plain, use_cache):
    with pytest.raises(ValueError, match="output_attentions: attention weights of Qwen3.5.* are not formed here"):
        lay_flat(plain)(torch.arange(1, 9)[None], output_attentions=True, use_cache=use_cache)
