"""LoRA by one product against PEFT's own forward; what is not plain LoRA stays PEFT's."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from hybrid_ft.hybrid_model.layers.lora_linear import add_by_one_product


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(48, 96, bias=True)
        self.second = nn.Linear(96, 32, bias=False)

    def forward(self, x, **kwargs):
        return self.second(torch.tanh(self.first(x)))


def both(dtype=torch.float32, **lora):
    """The same adapters by PEFT and by one product, with weights of a trained size."""
    torch.manual_seed(0)
    model = get_peft_model(Small().to(dtype), LoraConfig(target_modules=["first", "second"], r=6, lora_alpha=9, **lora))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    other = copy.deepcopy(model)
    add_by_one_product(other)
    return model, other


def result(model, x, **kwargs):
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x, **kwargs)
    y.float().square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def apart(one, other):
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("shape", [(5, 48), (2, 7, 48), (48,), (1, 0, 48)])
def test_it_is_peft_s_in_float32(shape):
    peft, ours = both()
    x = torch.randn(shape)
    found, expected = result(ours, x), result(peft, x)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    if x.numel():
        assert apart(found, expected) < 1e-6
    assert [type(m).__name__ for m in ours.modules()] == [type(m).__name__ for m in peft.modules()]
    assert ours.state_dict().keys() == peft.state_dict().keys()


def test_peft_s_forward_is_left_out(monkeypatch):
    peft, ours = both()
    x, calls, theirs = torch.randn(3, 48), [], Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda layer, *given: calls.append(layer) or theirs(layer, *given))
    ours(x)
    assert calls == []
    peft(x)
    assert len(calls) == 2  # both adapted layers, so that it would have been seen


def test_under_autocast_it_is_as_near_to_the_truth_as_peft_s():
    """The output is rounded once, a factor's gradient once more where the scale is no power of two, as here."""
    peft, ours = both(torch.bfloat16)
    truth = copy.deepcopy(peft).double()
    x = torch.randn(400, 48, dtype=torch.bfloat16)
    expected = result(truth, x.double())
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        found, theirs = result(ours, x), result(peft, x)
    assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in theirs]
    errors = [
        (apart([mine], [exact]), apart([other], [exact]))
        for mine, other, exact in zip(found, theirs, expected, strict=True)
    ]
    assert all(mine < 1.5 * other for mine, other in errors)
    assert sum(mine for mine, _ in errors) < 1.05 * sum(other for _, other in errors)


@pytest.mark.parametrize("case", ["dropout", "dora", "two", "mixed dtypes"])
def test_what_is_not_plain_is_peft_s(case):
    more = {"dropout": {"lora_dropout": 0.3}, "dora": {"use_dora": True}}.get(case, {})
    peft, ours = both(torch.bfloat16 if case == "mixed dtypes" else torch.float32, **more)
    for model in (peft, ours):
        if case == "two":
            torch.manual_seed(2)
            model.add_adapter("other", LoraConfig(target_modules=["first", "second"], r=2, init_lora_weights=False))
            model.base_model.set_adapter(["default", "other"])
    x = torch.randn(20, 48, dtype=torch.bfloat16 if case == "mixed dtypes" else torch.float32)
    results = []
    for model in (ours, peft):
        torch.manual_seed(3)
        results.append(result(model.train(), x))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))


def test_adapters_off_and_merged():
    peft, ours = both()
    x = torch.randn(4, 48)
    with peft.disable_adapter(), ours.disable_adapter():
        assert torch.equal(ours(x), peft(x))
    adapted = ours(x)
    ours.merge_adapter()
    assert (ours(x) - adapted).norm() < 1e-5 * adapted.norm()
    ours.unmerge_adapter()
    assert (ours.merge_and_unload()(x) - adapted).norm() < 1e-5 * adapted.norm()


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "base_layer"])
def test_hooks_fire(where):
    _, ours = both()
    seen = []
    module = getattr(ours.base_model.model.first, where)
    module = module["default"] if where != "base_layer" else module
    module.register_forward_hook(lambda module, given, out: seen.append(out.shape))
    ours(torch.randn(3, 48))
    assert len(seen) == 1
