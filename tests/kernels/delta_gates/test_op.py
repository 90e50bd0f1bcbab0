"""The gates against transformers' lines and against their equations."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_ft.kernels.delta_gates import delta_gates


def case(shape: tuple[int, ...]) -> list[Tensor]:
    """a, b, A_log, dt_bias."""
    gen = torch.Generator().manual_seed(0)
    a, b = (4 * torch.randn(shape, generator=gen, dtype=torch.float64) for _ in range(2))
    A_log, dt_bias = (torch.randn(shape[-1], generator=gen, dtype=torch.float64) for _ in range(2))
    return [a, b, A_log, dt_bias]


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("shape", [(7, 3), (5,), (2, 3, 4), (0, 4)], ids=str)
def test_equations_in_float64(shape: tuple[int, ...], twice: bool) -> None:
    a, b, A_log, dt_bias = case(shape)
    g, beta = delta_gates(a, b, A_log, dt_bias, allow_neg_eigval=twice)
    torch.testing.assert_close(g, -A_log.exp() * torch.log(1 + (a + dt_bias).exp()), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(beta, (1 + twice) / (1 + torch.exp(-b)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bit_for_bit_as_transformers(dtype: torch.dtype, other: torch.dtype) -> None:
    """The decay is computed in float32 and stays it, beta in the activations' dtype."""
    a, b, A_log, dt_bias = case((40, 6))
    a, b, A_log, dt_bias = a.to(dtype), b.to(dtype), A_log.to(other), dt_bias.to(other)
    g, beta = delta_gates(a, b, A_log, dt_bias)
    assert g.dtype == torch.float32 and beta.dtype == dtype
    assert torch.equal(g, -A_log.float().exp() * F.softplus(a.float() + dt_bias))
    assert torch.equal(beta, b.sigmoid() * 2.0)


BAD = {
    "integer": ({"b": torch.ones(5, 4, dtype=torch.int64)}, "b: got torch.int64; it must be float"),
    "no dimension": ({"a": torch.tensor(1.0)}, "a: got no dimension; it must have at least one"),
    "b": ({"b": torch.ones(4, 4)}, r"b: got shape \(4, 4\); it must be a's, \(5, 4\)"),
    "A_log": ({"A_log": torch.ones(5)}, r"A_log: got shape \(5,\); it must be a's last size, \(4,\)"),
    "dt_bias": ({"dt_bias": torch.ones(1, 4)}, r"dt_bias: got shape \(1, 4\); it must be a's last size, \(4,\)"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD)
def test_bad_argument(change: dict, message: str) -> None:
    good = {"a": torch.ones(5, 4), "b": torch.ones(5, 4), "A_log": torch.ones(4), "dt_bias": torch.ones(4)}
    with pytest.raises(ValueError, match=message) as raised:
        delta_gates(**{**good, **change})
    assert "\n" not in str(raised.value)
