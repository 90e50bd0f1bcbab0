"""torch.compile around a model on a CPU: a training step and decoding give what they give without it."""

import pytest
import torch

TOKENS = torch.randint(1, 61, (2, 13), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS).index_put((torch.tensor([1]), torch.tensor([0])), torch.tensor(0))


@pytest.fixture(autouse=True)
def _forget():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow  # a step that is compiled for decoding is a fast test of the static cache
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # dynamo's own look
def test_a_training_step(make_pair, relative, assert_gradients):
    results = []
    model = make_pair(seed=1, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"])[1].train()
    for forward in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        out = forward(input_ids=TOKENS, attention_mask=MASK, labels=TOKENS, use_cache=False)
        out.loss.backward()
        results.append((out.logits, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (expected, gradients), (got, own) = results
    assert relative(got, expected) < 1e-6
    assert_gradients(own, gradients, 1e-5)


@pytest.mark.slow
def test_decoding(make_pair):
    model = make_pair(seed=1)[1]
    call = {"attention_mask": MASK, "do_sample": False, "max_new_tokens": 6}
    expected = model.generate(TOKENS, **call)
    model.forward = torch.compile(model.forward, backend="aot_eager")
    assert torch.equal(model.generate(TOKENS, **call), expected)
