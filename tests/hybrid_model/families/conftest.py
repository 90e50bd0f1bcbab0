"""Random tiny models of every family in plain transformers, and the same weights laid flat."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)

from hybrid_ft.hybrid_model.families.known import FAMILIES, family_of_type
from hybrid_ft.hybrid_model.lay_flat import lay_flat

VOCABULARY = 128
BY_DEFAULT = ("qwen3_5_text", "lfm2")
EVERY = [
    pytest.param(kind, marks=() if kind in BY_DEFAULT else pytest.mark.slow)
    for family in FAMILIES
    for kind in family.tiny
]


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Logits of deviation about 1, decays as in training, norms and gates away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if name.endswith("A_log"):
                p.copy_(torch.empty(p.shape).uniform_(1, 8, generator=generator).log())
            elif name.endswith("dt_bias"):
                dt = torch.exp(torch.empty(p.shape).uniform_(math.log(1e-3), math.log(1e-1), generator=generator))
                p.copy_(dt + torch.log(-torch.expm1(-dt)))
            elif "norm" in name:
                p.add_(0.3 * noise)
            elif "conv" in name and p.ndim == 3:
                p.copy_(0.5 * noise)
            elif "embed" in name:
                p.copy_(noise)
            elif p.ndim >= 2:
                p.copy_(noise * p.shape[-1] ** -0.5)
            else:
                p.add_(0.1 * noise)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    def make(kind: str, **fields: Any) -> Any:
        if kind not in CONFIG_MAPPING:
            pytest.skip("this transformers does not have it")
        sizes = family_of_type(kind).tiny[kind] | {"max_position_embeddings": 512} | fields
        tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        with warnings.catch_warnings(action="ignore"):
            return AutoConfig.for_model(kind, **tokens | dict(sizes))

    return make


@pytest.fixture(scope="session")
def plain_model(tiny_config: Callable[..., Any]) -> Callable[..., PreTrainedModel]:
    """A random model as transformers builds it, in eval mode."""

    def make(kind: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
        with warnings.catch_warnings(action="ignore"):
            model = AutoModelForCausalLM.from_config(tiny_config(kind, **fields), attn_implementation="sdpa")
        randomise(model, seed)
        return model.float().eval()

    return make


@pytest.fixture(scope="session")
def plain_and_flat(plain_model: Callable[..., PreTrainedModel]) -> Callable[..., tuple[Any, Any]]:
    """The same weights in plain transformers and laid flat."""

    def make(kind: str, seed: int = 0, **fields: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
        plain = plain_model(kind, seed, **fields)
        return plain, lay_flat(copy.deepcopy(plain))

    return make


@pytest.fixture(scope="module", params=EVERY)
def models(request: pytest.FixtureRequest, plain_and_flat: Callable[..., Any]) -> tuple[Any, Any]:
    return plain_and_flat(request.param)


@pytest.fixture(scope="session")
def multimodal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As Qwen3.5 is released: the text model beside a vision tower, and heads that predict further tokens."""
    text = family_of_type("qwen3_5_text").tiny["qwen3_5_text"] | {"vocab_size": 128, "eos_token_id": 4}
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 64}
    config = AutoConfig.for_model("qwen3_5", text_config=text, vision_config=vision, tie_word_embeddings=False)
    config.eos_token_id = 6
    model = AutoModelForImageTextToText.from_config(config)
    randomise(model, 0)
    folder = tmp_path_factory.mktemp("multimodal") / "base"
    model.save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    whole["mtp.layers.0.weight"] = torch.randn(3, 5)
    whole["model.language_model.layers.0.linear_attn.A_log"] += 0.123
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    (folder / "preprocessor_config.json").write_text("{}")
    return folder
