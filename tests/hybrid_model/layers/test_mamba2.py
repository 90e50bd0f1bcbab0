"""When Mamba-2 runs on the delta rule's kernels. That it is right is what tests/hybrid_model/families shows."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hybrid_ft
from hybrid_ft.hybrid_model.families.known import family_of_type
from hybrid_ft.hybrid_model.layers import mamba2


@pytest.fixture
def model():
    sizes = family_of_type("granitemoehybrid").tiny["granitemoehybrid"]
    config = AutoConfig.for_model("granitemoehybrid", vocab_size=64, pad_token_id=0, **sizes)
    return hybrid_ft.lay_flat(AutoModelForCausalLM.from_config(config))


@pytest.fixture
def calls(monkeypatch):
    """The delta rule's dtypes."""
    seen = []
    rule = mamba2.gated_delta_rule
    monkeypatch.setattr(
        mamba2, "gated_delta_rule", lambda q, *rest, **given: seen.append(q.dtype) or rule(q, *rest, **given)
    )
    return seen


def logits(model):
    ids = torch.arange(1, 13)[None]
    return model(input_ids=ids, position_ids=torch.tensor([[*range(7), *range(5)]]), use_cache=False).logits.float()


def test_kernels_in_float32_and_under_autocast(model, calls):
    exact = logits(model)
    assert calls and set(calls) == {torch.float32}
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logits(model)
    assert calls and set(calls) == {torch.bfloat16}
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_float16_and_other_activations_are_transformers_own(model, calls):
    exact = logits(model)
    calls.clear()
    with torch.autocast("cpu", torch.float16):
        assert (logits(model) - exact).norm() < 0.05 * exact.norm()
    for module in model.modules():
        if hasattr(module, "A_log"):
            module.activation = "gelu"
    assert logits(model).isfinite().all()
    assert not calls
