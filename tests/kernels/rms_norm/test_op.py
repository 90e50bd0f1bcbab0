import pytest
import torch

from hybrid_ft.kernels.rms_norm import rms_norm, rms_norm_reference


def run(op, x, weight, dy, eps):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = op(x, weight, eps)
    y.backward(dy.to(y.dtype))
    return y.detach(), x.grad, weight.grad


def error(got, truth):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, truth)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (2, 5, 96), (300, 192)])
def test_error_is_at_most_twice_the_references(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) * torch.rand(*shape[:-1], 1, generator=generator) * 30).to(dtype)
    weight = torch.randn(shape[-1], generator=generator).to(dtype)
    dy = torch.randn(shape, generator=generator).to(dtype)
    truth = run(rms_norm_reference, x.double(), weight.double(), dy.double(), 1e-3)
    reference = error(run(rms_norm_reference, x, weight, dy, 1e-3), truth)
    floor = max(4 * torch.finfo(dtype).eps, 1e-10)  # the reference is its own truth in float64
    for got, bound in zip(error(run(rms_norm, x, weight, dy, 1e-3), truth), reference):
        assert got <= max(2 * bound, floor)


def test_a_row_of_zeros_has_a_finite_gradient():
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    assert torch.allclose(x.grad, torch.full((2, 4), 1e3))


def test_without_gradients_the_numbers_are_the_same():
    x, weight = torch.randn(3, 5), torch.randn(5)
    with torch.no_grad():
        quiet = rms_norm(x, weight)
    assert torch.equal(quiet, rms_norm(x.requires_grad_(), weight).detach())


def test_a_frozen_weight_gets_no_gradient():
    x, weight = torch.randn(3, 5, requires_grad=True), torch.randn(5)
    rms_norm(x, weight).sum().backward()
    assert weight.grad is None
    expected = torch.autograd.grad(rms_norm_reference(x, weight).sum(), x)[0]
    assert torch.allclose(x.grad, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weight: got shape \(3,\); it must be x's last size, \(4,\)"):
        rms_norm(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"residual: got torch.int64; it must be float"):
        rms_norm(torch.ones(2, 4), torch.ones(4), residual=torch.ones(2, 4, dtype=torch.int64))
