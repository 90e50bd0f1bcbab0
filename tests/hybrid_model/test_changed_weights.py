"""Decoding uses the weights as they are, however they were changed since the last answer."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hybrid_ft.hybrid_model.adapters import add_lora

TOKENS = torch.arange(1, 8)[None]


def logits(model):
    found = model.eval().generate(
        TOKENS, do_sample=False, max_new_tokens=8, output_logits=True, return_dict_in_generate=True
    )
    return torch.stack(found.logits)


def fused_step(model, other):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    model(TOKENS, labels=TOKENS).loss.backward()
    optimizer.step()


def merged_adapter(model, other):
    adapted = add_lora(model, "all-linear", rank=2, alpha=64)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    adapted.merge_and_unload()


CHANGES = {
    "data.copy_": lambda model, other: [a.data.copy_(b.data) for a, b in zip(model.parameters(), other.parameters())],
    "data.lerp_": lambda model, other: [
        a.data.lerp_(b.data, 0.3) for a, b in zip(model.parameters(), other.parameters())
    ],
    "vector_to_parameters": lambda model, other: vector_to_parameters(
        parameters_to_vector(other.parameters()), model.parameters()
    ),
    "a fused optimizer": fused_step,
    "a merged adapter": merged_adapter,
    "float64": lambda model, other: model.double(),
    "float16": lambda model, other: model.half(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_answer_has_the_changed_weights(make_pair, change):
    model, other = make_pair(seed=1)[1], make_pair(seed=2)[1]
    before = logits(model)
    CHANGES[change](model, other)
    expected = logits(copy.deepcopy(model))
    got = logits(model)
    assert torch.equal(got, expected)
    assert not torch.allclose(got.double(), before.double(), rtol=1e-6)
    with torch.no_grad():
        whole = model(torch.cat([TOKENS, got.argmax(-1).T[:, :-1]], dim=1), use_cache=False).logits[0, -8:].float()
    assert torch.allclose(got[:, 0], whole, rtol=0, atol=4e-3 * float(whole.abs().max()))


class Int8Linear(nn.Linear):
    """Weights of a byte each with a scale a row. Quantised tensors cannot be joined; this one has
    no ``weight`` at all."""

    def __init__(self, linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, None
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.rounded = (linear.weight.detach() / self.scale).round().to(torch.int8)

    def forward(self, x):
        return x @ (self.rounded * self.scale).T


def test_quantised_layers_decode(make_pair):
    plain, ours = make_pair(seed=3)
    for model in (plain, ours):
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear:
                model.set_submodule(name, Int8Linear(module))
    assert torch.allclose(logits(ours), logits(plain), rtol=1e-4, atol=1e-4)
