"""Every family: what plain transformers saved opens here, and what is saved here has the base's own layout."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.base_layout import verify_in_base_layout
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.families.known import family_of_type
from tests.hybrid_model.families.conftest import EVERY

TOKENS = torch.arange(3, 60)[None]
OTHERS = [param for param in EVERY if param.values[0] != "olmo_hybrid"]


def tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


@pytest.fixture(scope="module", params=OTHERS)
def base(request, plain_model, tmp_path_factory):
    """A folder as plain transformers saves it, in several files."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    plain = plain_model(request.param)
    plain.save_pretrained(folder, max_shard_size="200KB")
    return plain, folder


def test_a_folder_of_plain_transformers_opens_with_its_logits(base, relative):
    plain, folder = base
    assert relative(logits(hybrid_ft.load(folder)), logits(plain)) < 1e-5


def test_an_export_has_the_names_shapes_and_dtypes_of_its_base(base, tmp_path, relative):
    _, folder = base
    model = hybrid_ft.load(folder)
    trained = next(name for name, p in model.named_parameters() if name.endswith(("o_proj.weight", "out_proj.weight")))
    with torch.no_grad():
        dict(model.named_parameters())[trained].mul_(1.5)
    save(model, tmp_path)
    assert verify(tmp_path, model) < 1e-5
    before, after = tensors(folder), tensors(tmp_path)
    assert {name: (x.shape, x.dtype) for name, x in after.items()} == {
        name: (x.shape, x.dtype) for name, x in before.items()
    }
    assert sum(not torch.equal(after[name], x) for name, x in before.items()) == 1
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(opened), logits(model)) < 1e-5


def test_a_base_in_bfloat16_keeps_its_dtypes(base, tmp_path, relative):
    """Trained in float32, its tensors are written in the base's dtype; loaded in bfloat16 it computes."""
    plain, _ = base
    folder, result = tmp_path / "base", tmp_path / "result"
    half = AutoModelForCausalLM.from_config(plain.config).to(torch.bfloat16)
    half.load_state_dict(plain.state_dict())
    half.save_pretrained(folder)
    model = hybrid_ft.load(folder, dtype="float32")
    save(model, result)
    verify(result, model)
    before, after = tensors(folder), tensors(result)
    assert all(torch.equal(after[name], x) and after[name].dtype == x.dtype for name, x in before.items())
    narrow = hybrid_ft.load(folder)
    assert relative(logits(narrow).float(), logits(model)) < 0.5  # rounding makes experts change
    endings = family_of_type(plain.config.model_type).float32
    assert all(p.dtype == torch.float32 for name, p in narrow.named_parameters() if name.endswith(endings))


def test_what_is_beside_the_text_model_is_carried_through(multimodal, tmp_path, relative):
    model = hybrid_ft.load(multimodal)
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    assert model.config.eos_token_id == [6, 4]
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    save(model, tmp_path)
    verify(tmp_path, model)
    before, after = tensors(multimodal), tensors(tmp_path)
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["lm_head.weight"]
    config = json.loads((tmp_path / "config.json").read_text())
    assert config == json.loads((multimodal / "config.json").read_text())
    assert (tmp_path / "preprocessor_config.json").is_file()
    opened = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert relative(logits(opened), logits(model)) < 1e-5


def test_a_changed_carried_tensor_is_seen(multimodal, tmp_path):
    model = hybrid_ft.load(multimodal)
    save(model, tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    save_file(whole | {"mtp.layers.0.weight": torch.zeros(3, 5)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="mtp.layers.0.weight is carried along and differs"):
        verify_in_base_layout(tmp_path, model)


def test_a_base_in_float32_can_be_written_in_bfloat16(multimodal, tmp_path):
    """As a pipeline's export may ask for. What is carried stays as it is."""
    model = hybrid_ft.load(multimodal, dtype="bfloat16")
    save(model, tmp_path)
    verify(tmp_path, model)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("lm_head.weight").dtype == torch.bfloat16
        assert file.get_tensor("model.language_model.layers.0.linear_attn.A_log").dtype == torch.float32
        assert file.get_tensor("mtp.layers.0.weight").dtype == torch.float32
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["dtype"] == "bfloat16"


def test_a_tied_head_that_the_base_stores_goes_with_the_embedding(plain_model, tmp_path):
    plain_model("lfm2").save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    whole = load_file(path)
    save_file(whole | {"lm_head.weight": whole["model.embed_tokens.weight"].clone()}, path, {"format": "pt"})
    model = hybrid_ft.load(tmp_path / "base")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    save(model, tmp_path / "result")
    verify(tmp_path / "result", model)
    after = tensors(tmp_path / "result")
    assert torch.equal(after["lm_head.weight"], 1.5 * whole["model.embed_tokens.weight"])


def test_an_experts_missing_part_is_one_line(plain_model, tmp_path):
    plain_model("qwen3_next").save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = load_file(path)
    del whole["model.layers.0.mlp.experts.3.up_proj.weight"]
    save_file(whole, path, {"format": "pt"})
    with pytest.raises(InputError, match="tensors that transformers joins, as those of experts") as raised:
        hybrid_ft.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda whole: whole.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
        (lambda whole: whole.update({"model.language_model.odd": torch.zeros(1)}), "tensor .*odd is not part of"),
        (lambda whole: whole.update({"lm_head.weight": torch.zeros(5, 64)}), r"lm_head.weight has shape \[5, 64\]"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(multimodal, tmp_path, damage, message):
    folder = shutil.copytree(multimodal, tmp_path / "base")
    whole = load_file(folder / "model.safetensors")
    damage(whole)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=message), warnings.catch_warnings(action="ignore"):
        hybrid_ft.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen3_6"}, "'qwen3_6'; must be one of .*; did you mean qwen3_5"),
        # as like as two words must be anywhere for a suggestion
        ({"model_type": "olm3_h"}, "did you mean olmo3"),
        ({"model_type": "phi4flash", "auto_map": {"AutoModel": "x.Y"}}, "names code of its own .auto_map."),
        ({"text_config": None}, "text_config is 'None'; must be an object"),
        ({"quantization_config": {"bits": 4}}, "quantised weights cannot be trained"),
    ],
)
def test_configs_that_cannot_be_opened_are_refused(multimodal, tmp_path, change, message):
    config = json.loads((multimodal / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        hybrid_ft.load(tmp_path)


@pytest.mark.parametrize("old", [False, True], ids=["flat", "old keys"])
def test_a_flat_rope_of_olmo_3_is_mended(plain_model, tmp_path, relative, old):
    """One rope for all layers is the full layers' YaRN and the windows' theta; the result says so by kind of layer."""
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32}
    both = {
        "full_attention": yarn | {"rope_theta": 7e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e4},
    }
    right = plain_model("olmo3", rope_parameters=both)
    right.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    changed = {"rope_scaling": yarn, "rope_theta": 7e4} if old else {"rope_parameters": yarn | {"rope_theta": 7e4}}
    path.write_text(json.dumps(config | changed))
    model = hybrid_ft.load(tmp_path / "base")
    assert relative(logits(model), logits(right)) < 1e-5
    save(model, tmp_path / "result")
    verify(tmp_path / "result", model)
    assert relative(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "result")), logits(right)) < 1e-5


def test_the_dense_layer_of_kimi_keeps_its_released_name(plain_model, tmp_path):
    """transformers 5.23 reads ``mlp`` and writes ``block_sparse_moe``."""
    plain_model("kimi_linear").save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    whole = load_file(path)
    released = {
        name.replace("layers.0.block_sparse_moe.", "layers.0.mlp.") if ".0." in name else name: tensor
        for name, tensor in whole.items()
    }
    save_file(released, path, {"format": "pt"})
    save(hybrid_ft.load(tmp_path / "base"), tmp_path / "result")
    assert tensors(tmp_path / "result").keys() == released.keys()
    assert "model.layers.0.mlp.gate_proj.weight" in released


BOUNDS = ("position_ids", "all bounds", "padding on the left")


@pytest.mark.parametrize("form", BOUNDS)
def test_a_loaded_folder_leaks_nothing(base, relative, form):
    """The second of two documents, as a trainer may mark them; plain transformers gives it another document's state."""
    plain, folder = base
    first, second = (torch.randint(3, 128, (n,), generator=torch.Generator().manual_seed(n)) for n in (23, 29))
    edges = torch.tensor([0, 23, 52], dtype=torch.int32)
    packed = {
        "input_ids": torch.cat([first, second])[None],
        "position_ids": torch.cat([torch.arange(23), torch.arange(29)])[None],
        "use_cache": False,
    }
    bounds = {
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": 29,
        "max_length_k": 29,
        "seq_idx": torch.arange(2, dtype=torch.int32).repeat_interleave(edges.diff())[None],
    }
    model = hybrid_ft.load(folder)
    with torch.no_grad():
        alone = plain(input_ids=second[None], use_cache=False).logits[0]
        if form == "padding on the left":
            ids, mask = torch.zeros(2, 2, 29, dtype=torch.long)
            ids[0, 6:], ids[1], mask[0, 6:], mask[1] = first, second, 1, 1
            got = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            assert relative(got[0, 6:], plain(input_ids=first[None], use_cache=False).logits[0]) < 1e-5
            assert relative(got[1], alone) < 1e-5
            return
        got = model(**packed, **(bounds if form == "all bounds" else {})).logits[0, 23:]
        assert relative(got, alone) < 1e-5
        if form == "position_ids" and model.config.model_type not in ("olmo2", "olmo3"):
            assert relative(plain(**packed).logits[0, 23:], alone) > 1e-2
