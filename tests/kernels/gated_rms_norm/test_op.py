"""The gated norm against its definition and transformers' module."""

import pytest
import torch
from torch import Tensor
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridRMSNormGated

from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm, gated_rms_norm_reference

SHAPES = [(5, 8), (7,), (3, 2, 16), (2, 3, 4, 192), (400, 3, 96), (1, 70000), (0, 4, 8)]


def case(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor]:
    gen = torch.Generator().manual_seed(0)
    x, gate, weight, dy = (
        torch.randn(s, generator=gen, dtype=torch.float64) for s in (shape, shape, shape[-1:], shape)
    )
    return [t.to(dtype) for t in (x, gate, weight)], dy.to(dtype)


def results(rule, leaves: list[Tensor], dy: Tensor, dtype=None) -> list[Tensor]:
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in leaves]
    y = rule(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_definition_in_float64(shape: tuple[int, ...]) -> None:
    for x, y in zip(results(gated_rms_norm, *case(shape)), results(gated_rms_norm_reference, *case(shape))):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_float32_error_is_at_most_twice_the_references_own() -> None:
    inputs = case((500, 2, 192))
    true = results(gated_rms_norm_reference, *inputs)
    reference = results(gated_rms_norm_reference, *inputs, dtype=torch.float32)
    for x, r, t in zip(results(gated_rms_norm, *inputs, dtype=torch.float32), reference, true):
        assert (x - t).norm() <= 2 * (r - t).norm()


def test_transformers_module() -> None:
    (x, gate, weight), _ = case((9, 4, 24), torch.float32)
    module = OlmoHybridRMSNormGated(24, eps=1e-5)
    with torch.no_grad():
        module.weight.copy_(weight)
        torch.testing.assert_close(gated_rms_norm(x, gate, weight, eps=1e-5), module(x, gate), rtol=1e-6, atol=1e-6)


def test_bfloat16_is_float32_rounded_once() -> None:
    leaves, dy = case((40, 3, 64), torch.bfloat16)
    half = results(gated_rms_norm, leaves, dy)
    wide = results(gated_rms_norm, leaves, dy, dtype=torch.float32)
    assert all(x.dtype == torch.bfloat16 and torch.equal(x, y.bfloat16()) for x, y in zip(half, wide))


def test_strided_gate_and_expanded_gradient() -> None:
    (x, gate, weight), _ = case((50, 3, 16))
    wide = torch.cat([gate, gate], -1)[..., 4:20].requires_grad_()
    by_token = x.transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    got = torch.autograd.grad(gated_rms_norm(by_token, wide, weight).sum(), (by_token, wide))
    true = torch.autograd.grad(gated_rms_norm_reference(by_token, wide, weight).sum(), (by_token, wide))
    for x, y in zip(got, true):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    leaves, _ = case((3, 2, 4))
    assert torch.autograd.gradcheck(gated_rms_norm, [t.requires_grad_() for t in leaves])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.randn(3, 5)}, r"gate: got shape \(3, 5\); it must be x's, \(3, 4\)"),
        ({"x": torch.ones(3, 4, dtype=torch.int64)}, "x: got torch.int64; it must be float"),
        ({"weight": torch.randn(3)}, r"weight: got shape \(3,\); it must be x's last size, \(4,\)"),
    ],
)
def test_bad_argument(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gated_rms_norm(**{"x": torch.randn(3, 4), "gate": torch.randn(3, 4), "weight": torch.randn(4), **change})
