"""Projections of one tensor against the same layers one by one, and where they are called one by one."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hybrid_ft.hybrid_model.layers import projections as module
from hybrid_ft.hybrid_model.layers.lora_linear import add_by_one_product
from hybrid_ft.hybrid_model.layers.projections import projections

WIDTHS = (40, 24, 3)


class Several(nn.Module):
    def __init__(self, together: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, width, bias=False) for width in WIDTHS)
        self.together = together

    def forward(self, x: torch.Tensor, **_: Any) -> list[torch.Tensor]:
        return list(projections(x, *self.layers) if self.together else [layer(x) for layer in self.layers])


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def both(dtype: torch.dtype = torch.float32, adapted: tuple[str, ...] = (), **lora: Any) -> tuple[Any, Any]:
    """Together and one by one, of the same weights."""
    torch.manual_seed(0)
    model: Any = Several(True).to(dtype)
    if adapted:
        model = get_peft_model(model, LoraConfig(target_modules=list(adapted), r=4, lora_alpha=6, **lora))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3)
        add_by_one_product(model)
    other = copy.deepcopy(model)
    inner = other.get_base_model() if adapted else other
    inner.together = False
    return model, other


def results(model: Any, x: torch.Tensor, first: int = 0) -> list[torch.Tensor]:
    """Outputs from number ``first`` on, the gradients of x and of every trained parameter that has one."""
    x = x.detach().clone().requires_grad_()
    model.zero_grad()
    outputs = model(x)
    sum((i + 1) * y.float().square().sum() for i, y in enumerate(outputs[first:])).backward()
    return [*(y.detach() for y in outputs), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def apart(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30))


@pytest.mark.parametrize("adapted", [(), ("layers.0", "layers.1", "layers.2"), ("layers.1",)], ids=str)
@pytest.mark.parametrize(("shape", "first"), [((5, 32), 0), ((2, 7, 32), 0), ((1, 4, 32), 2)])
def test_they_are_the_layers_one_by_one(shape: tuple[int, ...], first: int, adapted: tuple[str, ...]) -> None:
    together, apart_each = both(adapted=adapted)
    x = torch.randn(shape)
    found, expected = results(together, x, first), results(apart_each, x, first)
    assert len(found) == len(expected) >= 4
    for mine, theirs in zip(found, expected):
        assert mine.shape == theirs.shape and apart(mine, theirs) < 1e-6


@pytest.mark.parametrize("adapted", [(), ("layers.0", "layers.1")], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_in_bfloat16_they_are_nearer_to_the_truth(autocast: bool, adapted: tuple[str, ...]) -> None:
    if adapted and not autocast:
        pytest.skip("PEFT keeps factors in float32, which autocast alone multiplies with bfloat16")
    together, apart_each = both(torch.bfloat16, adapted)
    x = torch.randn(400, 32, dtype=torch.bfloat16)
    exact = results(copy.deepcopy(apart_each).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
        found, theirs = results(together, x), results(apart_each, x)
    assert [y.dtype for y in found] == [y.dtype for y in theirs]
    errors = [(apart(a, t), apart(b, t)) for a, b, t in zip(found, theirs, exact, strict=True)]
    assert all(mine <= 1.02 * other for mine, other in errors), errors
    assert errors[len(WIDTHS)][0] < errors[len(WIDTHS)][1]  # x's gradient


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(("adapted", "added"), [((), len(WIDTHS) - 1), (("layers.0", "layers.1"), len(WIDTHS) - 1 + 2)])
def test_nothing_is_added_outside_the_products(adapted: tuple[str, ...], added: int, fake: bool) -> None:
    """Also where a step is traced or counted on tensors without memory."""
    mode, adds = FakeTensorMode(), []
    for model in both(adapted=adapted):
        x = torch.randn(6, 32)
        if fake:
            x = mode.from_tensor(x)
            for layer in [layer for layer in model.modules() if type(layer) is nn.Linear]:
                layer.weight = nn.Parameter(mode.from_tensor(layer.weight), layer.weight.requires_grad)
        outputs = model(x.requires_grad_())
        with Names() as names:
            torch.autograd.backward(outputs, [torch.ones_like(y) for y in outputs])
        adds.append(sum(name in ("add", "add_") for name in names.found))
    assert adds == [0, added]


@pytest.mark.parametrize("what", ["hook", "forward", "bias", "autocast", "no gradient", "dropout"])
def test_who_watches_a_layer_sees_it_called(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = both(adapted=("layers.0",) if what == "dropout" else (), **({"lora_dropout": 0.5} if what == "dropout" else {}))  # fmt: skip
    layers = (model.get_base_model() if what == "dropout" else model).layers
    together = []
    monkeypatch.setattr(module._Projections, "apply", lambda *given: together.append(given))
    seen: list[Any] = []
    if what == "hook":
        layers[1].register_forward_hook(lambda *given: seen.append(given))
    if what == "forward":
        layers[2].forward = lambda x, inner=layers[2].forward: seen.append(x) or inner(x)
    if what == "bias":
        layers[0].bias = nn.Parameter(torch.ones(WIDTHS[0]))
    x = torch.randn(4, 32, requires_grad=what != "no gradient")
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        outputs = model.train()(x)
    assert together == [] and [y.shape[-1] for y in outputs] == list(WIDTHS)
    assert len(seen) == (what in ("hook", "forward"))
    monkeypatch.undo()


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_frozen_keeps_no_input(trained: bool) -> None:
    layers = [nn.Linear(8, 4, bias=False).requires_grad_(trained) for _ in range(2)]
    x, kept = torch.randn(3, 5, 8, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda kept: kept
    ):
        sum(y.sum() for y in projections(x, *layers)).backward()
    assert x.grad is not None and (x.shape in kept) == trained


class Quantised(torch.Tensor):
    """As torchao's: a float to whoever asks for the dtype, known to ``linear``, and to no other product."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.__matmul__, torch.Tensor.addmm_, torch.addmm, torch.matmul):
            raise NotImplementedError(func)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("adapted", [(), ("layers.0", "layers.2")])
def test_a_quantised_weight_is_left_to_its_own_linear(adapted: tuple[str, ...]) -> None:
    model, other = both(adapted=adapted)
    x = torch.randn(5, 32)
    for parameter in [*model.parameters(), *other.parameters()]:
        parameter.requires_grad_(parameter.shape[-1] == 4 or len(parameter) == 4)
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.in_features == 32 and layer.out_features != 4:
            layer._parameters["weight"] = layer.weight.detach().as_subclass(Quantised)
    for ours, theirs in zip(results(model, x), results(other, x), strict=True):
        assert torch.equal(ours, theirs)
