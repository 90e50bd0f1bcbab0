"""Results are compared on a CPU where the packages are installed whose kernels transformers would call there."""

import importlib
import sys
from types import ModuleType
from typing import Any, NoReturn

import pytest
import torch
from transformers.integrations.hub_kernels import use_kernel_func_from_hub_with_fallback

from hybrid_ft.hybrid_model.checkpoint.base_layout import save_in_base_layout, verify_in_base_layout
from hybrid_ft.hybrid_model.checkpoint.save import save, verify
from hybrid_ft.hybrid_model.checkpoint.text_model import random_text_model
from hybrid_ft.hybrid_model.checkpoint.torch_functions import torch_functions
from hybrid_ft.hybrid_model.families.known import FAMILIES

# A model type, and what transformers calls by these names of these packages where they are installed.
CALLED = {
    "olmo_hybrid": {"causal_conv1d_fn": "causal_conv1d", "chunk_gated_delta_rule": "fla"},
    "qwen3_next": {"causal_conv1d_fn": "causal_conv1d", "chunk_gated_delta_rule": "fla"},
    "lfm2": {"causal_conv1d_fn": "causal_conv1d"},
    "kimi_linear": {"causal_conv1d_fn": "causal_conv1d"},
}


class OnCpu(Exception):
    pass


def kernel(*args: Any, **kwargs: Any) -> NoReturn:
    raise OnCpu("Pointer argument cannot be accessed from Triton (cpu tensor?)")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``installed(model_type)``: transformers' module as it is when it is imported beside these packages."""

    def install(model_type: str) -> ModuleType:
        module = importlib.import_module(f"transformers.models.{model_type}.modeling_{model_type}")
        for name, package in CALLED[model_type].items():
            stand_in = ModuleType(package)
            setattr(stand_in, name, kernel)
            monkeypatch.setitem(sys.modules, package, stand_in)
            own = name if hasattr(module, name) else f"torch_{name}"
            torch_function = getattr(module, own).__wrapped__
            wrapped = use_kernel_func_from_hub_with_fallback(name, package)(torch_function)
            monkeypatch.setattr(module, own, wrapped)
        return module

    return install


def test_of_olmo_hybrid(make_pair: Any, tmp_path: Any, installed: Any) -> None:
    plain, ours = make_pair(seed=1)
    save(ours, tmp_path)
    module = installed("olmo_hybrid")
    before = dict(vars(module))
    assert verify(tmp_path, ours) < 1e-5
    assert dict(vars(module)) == before
    with pytest.raises(OnCpu):
        plain(torch.arange(8)[None])


@pytest.mark.parametrize("model_type", [kind for kind in CALLED if kind != "olmo_hybrid"])
def test_of_other_families(model_type: str, tmp_path: Any, installed: Any) -> None:
    family = next(family for family in FAMILIES if model_type in family.tiny)
    import transformers

    module = installed(model_type)
    config = transformers.CONFIG_MAPPING[model_type](
        **family.tiny[model_type], vocab_size=96, pad_token_id=None, bos_token_id=None, eos_token_id=None
    )
    torch.manual_seed(0)
    model = random_text_model(config, torch.float32)
    save_in_base_layout(model, tmp_path)
    assert verify_in_base_layout(tmp_path, model) < 1e-4
    with pytest.raises(OnCpu), torch.no_grad():
        getattr(module, family.model_types[model_type])(config)(torch.arange(8)[None])


def test_what_was_changed_is_put_back_after_an_error(installed: Any) -> None:
    module = installed("olmo_hybrid")
    before = dict(vars(module))
    with pytest.raises(RuntimeError), torch_functions():
        assert dict(vars(module)) != before
        raise RuntimeError
    assert dict(vars(module)) == before
