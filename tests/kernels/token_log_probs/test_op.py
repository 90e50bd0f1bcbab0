"""Against the definition in float64. In float32 and bfloat16 the error is at most twice the definition's
own in that dtype."""

import pytest
import torch

from hybrid_ft.kernels.token_log_probs import token_log_probs, token_log_probs_reference
from hybrid_ft.kernels.token_log_probs.op import BT, BV

SHAPES = [
    # tokens, words, size: below, at and over the tiles' edges
    (1, 5, 3),
    (63, BV, 8),
    (100, BV + 1, 16),
    (BT, 300, 8),
    (BT + 1, 2 * BV + 3, 5),
    (7, 3 * BV - 1, 96),
]


def inputs(tokens: int, words: int, size: int, scale: float = 1.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(tokens + words)
    hidden = torch.randn(tokens, size, dtype=torch.float64) * scale
    weight = torch.randn(words, size, dtype=torch.float64)
    targets = torch.randint(words, (tokens,))
    targets[0], targets[-1] = words - 1, 0
    return hidden, weight, targets, torch.randn(tokens, dtype=torch.float64)


def outputs(function, hidden, weight, targets, gradient) -> list[torch.Tensor]:
    hidden, weight = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    log_probs, entropy, is_top1 = function(hidden, weight, targets)
    gradients = torch.autograd.grad(log_probs, (hidden, weight), gradient.to(log_probs.dtype))
    return [log_probs.detach(), entropy, *gradients, is_top1]


def error(got: torch.Tensor, truth: torch.Tensor) -> float:
    return float((got.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_is_exact(shape):
    given = inputs(*shape)
    for got, truth in zip(outputs(token_log_probs, *given), outputs(token_log_probs_reference, *given), strict=True):
        assert got.dtype == truth.dtype
        assert error(got, truth.double()) < 1e-13 if truth.dtype == torch.float64 else torch.equal(got, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("shape", SHAPES[2:5], ids=str)
def test_error_is_at_most_twice_the_definitions(shape, scale, dtype):
    hidden, weight, targets, gradient = inputs(*shape, scale=scale)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    truth = outputs(token_log_probs_reference, hidden.double(), weight.double(), targets, gradient)
    own = outputs(token_log_probs_reference, hidden, weight, targets, gradient)
    ours = outputs(token_log_probs, hidden, weight, targets, gradient)
    for name, got, theirs, exact in zip(("log p", "entropy", "dhidden", "dweight"), ours, own, truth, strict=False):
        assert got.dtype == theirs.dtype and got.isfinite().all(), name
        # an entropy of nearly nothing is all rounding in both
        floor = 1e-6 if exact.norm() > 1e-3 else 1e-3
        assert error(got, exact) <= max(2 * error(theirs, exact), floor), name


def test_logits_of_any_size_are_finite():
    hidden, weight, targets, gradient = (x.float() if x.is_floating_point() else x for x in inputs(70, 5000, 8, 1e4))
    got = outputs(token_log_probs, hidden, weight, targets, gradient)
    truth = outputs(token_log_probs_reference, hidden.double(), weight.double(), targets, gradient)
    assert all(x.isfinite().all() for x in got[:4])
    assert error(got[0], truth[0]) < 1e-5 and error(got[2], truth[2]) < 1e-3


def test_a_number_that_is_none_is_passed_on():
    hidden, weight, targets, _ = inputs(20, 5000, 8)
    hidden[3, 2] = torch.nan
    log_probs, entropy, _ = token_log_probs(hidden, weight, targets)
    assert log_probs.isnan().nonzero().flatten().tolist() == entropy.isnan().nonzero().flatten().tolist() == [3]


def test_the_likeliest_token_is_told_across_tiles():
    """One word of the last tile is far likelier than all others."""
    hidden, weight = torch.ones(4, 6), torch.zeros(2 * BV + 9, 6)
    weight[2 * BV + 4] = 3.0
    log_probs, entropy, is_top1 = token_log_probs(hidden, weight, torch.tensor([2 * BV + 4, 0, 2 * BV + 4, BV]))
    assert is_top1.tolist() == [True, False, True, False]
    assert log_probs[0] > -1e-3 and entropy.max() < 1e-2


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(frozen):
    hidden, weight, targets, gradient = inputs(30, 3000, 8)
    expected = dict(
        zip(
            ("hidden", "weight"),
            outputs(token_log_probs_reference, hidden, weight, targets, gradient)[2:4],
            strict=True,
        )
    )
    leaves = {"hidden": hidden.requires_grad_(frozen != "hidden"), "weight": weight.requires_grad_(frozen != "weight")}
    token_log_probs(hidden, weight, targets)[0].backward(gradient)
    assert leaves[frozen].grad is None
    (other,) = set(leaves) - {frozen}
    assert error(leaves[other].grad, expected[other]) < 1e-13


def test_no_tokens_give_a_zero_that_can_be_differentiated():
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    log_probs, _, _ = token_log_probs(hidden, weight, torch.zeros(0, dtype=torch.long))
    log_probs.sum().backward()
    assert log_probs.shape == (0,) and weight.grad.abs().sum() == 0


@pytest.mark.parametrize(
    ("hidden", "weight", "targets"),
    [((4, 3), (9, 2), (4,)), ((4, 3), (9, 3), (5,)), ((2, 4, 3), (9, 3), (2,))],
)
def test_shapes_that_do_not_fit_are_told(hidden, weight, targets):
    with pytest.raises(ValueError, match=r"must be \[N"):
        token_log_probs(torch.zeros(hidden), torch.zeros(weight), torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.ones(4, 3, dtype=torch.int64)}, "hidden: got torch.int64; it must be float"),
        ({"targets": torch.zeros(4, dtype=torch.bool)}, "targets: got torch.bool; they must be int64"),
        ({"targets": torch.tensor([0, 8, 9, 1])}, "targets: got 0 to 9; they must be words of weight, 0 to 8"),
        ({"targets": torch.tensor([0, -100, 8, 1])}, "targets: got -100 to 8; they must be words of weight, 0 to 8"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(change: dict, message: str) -> None:
    inputs = {"hidden": torch.zeros(4, 3), "weight": torch.zeros(9, 3), "targets": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        token_log_probs(**inputs | change)
