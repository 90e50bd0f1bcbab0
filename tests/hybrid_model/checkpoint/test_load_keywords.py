"""Keywords of transformers' in ``load``, and errors that are not the file's."""

from typing import Any

import pytest
import torch
from transformers import OlmoHybridForCausalLM

import hybrid_ft
from hybrid_ft.errors import InputError


def test_a_device_map_is_transformers_own() -> None:
    row = torch.tensor([[5, 9, 33, 60, 12]])
    whole = hybrid_ft.load("tiny")
    mapped = hybrid_ft.load("tiny", device_map={"": "cpu"})
    assert mapped.hf_device_map == {"": torch.device("cpu")} or mapped.hf_device_map == {"": "cpu"}
    with torch.no_grad():
        assert torch.equal(mapped(row).logits, whole(row).logits)
    with pytest.raises(InputError, match="load: device_map places the weights of a checkpoint"):
        hybrid_ft.load("tiny", device_map="cpu", from_scratch=True)


@pytest.mark.parametrize("keyword", [{"quantization_config": {"bits": 4}}, {"attn_implementation": "eager"}])
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
