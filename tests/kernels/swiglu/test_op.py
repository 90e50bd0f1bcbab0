import pytest
import torch

from hybrid_ft.kernels.swiglu import swiglu, swiglu_reference


def run(op, gate, up, dy):
    gate, up = gate.clone().requires_grad_(), up.clone().requires_grad_()
    y = op(gate, up)
    y.backward(dy)
    return y.detach(), gate.grad, up.grad


def error(got, truth):
    return [float((a.double() - b).norm() / b.norm()) for a, b in zip(got, truth)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (2, 5, 96)])
def test_error_is_at_most_twice_that_of_rounding_the_reference(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    gate, up, dy = (torch.randn(shape, generator=generator).mul(4).to(dtype) for _ in range(3))
    truth = run(swiglu_reference, gate.double(), up.double(), dy.double())
    bound = 2 * torch.finfo(dtype).eps
    assert all(got <= bound for got in error(run(swiglu, gate, up, dy), truth))


def test_numbers_are_those_of_an_eager_mlp():
    gate, up = torch.randn(9, 4, dtype=torch.bfloat16), torch.randn(9, 4, dtype=torch.bfloat16)
    assert torch.equal(swiglu(gate, up), torch.nn.functional.silu(gate) * up)
    assert torch.equal(swiglu(gate.requires_grad_(), up).detach(), torch.nn.functional.silu(gate) * up)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"up: got shape \(4, 2\); it must be gate's, \(2, 4\)"):
        swiglu(torch.ones(2, 4), torch.ones(4, 2))
    with pytest.raises(ValueError, match="gate: got torch.bool; it must be float"):
        swiglu(torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 4))
