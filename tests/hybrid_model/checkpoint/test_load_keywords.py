"""Keywords of transformers' in ``load``, and errors that are not the file's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, OlmoHybridForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.known import family_of_type


def test_a_device_map_is_transformers_own(tmp_path: Path) -> None:
    row = torch.tensor([[5, 9, 33, 60, 12]])
    whole = hybrid_ft.load("tiny")
    cpu = {
        name: "cpu"
        for name in ("model.embed_tokens", "model.norm", "lm_head", *(f"model.layers.{n}" for n in (0, 2, 3)))
    }
    mapped = hybrid_ft.load("tiny", device_map=cpu | {"model.layers.1": "disk"}, offload_folder=tmp_path)
    assert mapped.model.layers[1].mlp.up_proj.weight.is_meta and not mapped.model.layers[0].mlp.up_proj.weight.is_meta
    with torch.no_grad():
        assert torch.equal(mapped(row).logits, whole(row).logits)
    with pytest.raises(InputError, match="load: device_map places the weights of a checkpoint"):
        hybrid_ft.load("tiny", device_map="cpu", from_scratch=True)


def test_a_device_map_of_another_family_keeps_documents_apart(tmp_path: Path) -> None:
    """accelerate calls the forward that a module had when it was placed."""
    sizes = family_of_type("qwen3_5_text").tiny["qwen3_5_text"]
    config = AutoConfig.for_model("qwen3_5_text", vocab_size=64, pad_token_id=0, **sizes)
    folder = tmp_path / "saved"
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    row = torch.tensor([[5, 9, 33, 60, 12, 7, 8]])
    packed = {"input_ids": row, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    places |= {f"model.layers.{n}": "cpu" for n in (0, 2, 3)} | {"model.layers.1": "disk"}
    mapped = hybrid_ft.load(folder, device_map=places, offload_folder=tmp_path / "offloaded")
    with torch.no_grad():
        assert torch.equal(mapped(**packed).logits, hybrid_ft.load(folder)(**packed).logits)


@pytest.mark.parametrize("keyword", [{"attn_implementation": "eager"}])
def test_what_would_be_obeyed_by_half_is_refused_by_name(keyword: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^load: {next(iter(keyword))}"):
        hybrid_ft.load("tiny", **keyword)


def test_an_error_that_is_not_the_file_s_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed compilation leaves torch such that making a model fails; the config is not to blame."""

    def fail(self: Any, *args: Any) -> None:
        raise RuntimeError("Cannot set version_counter for inference tensor")

    monkeypatch.setattr(OlmoHybridForCausalLM, "__init__", fail)
    with pytest.raises(RuntimeError, match="version_counter"):
        hybrid_ft.load("tiny")
