"""Cases of the gated delta rule in float64, and how close results come."""

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid_ft.kernels.gated_delta_rule.self_test import GATES, NAMES, error


def betas(kind: str, shape: tuple[int, ...], gen: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=gen, dtype=torch.float64)
    return {
        "0 to 2": 2 * uniform,
        "near 2": 2 - 0.02 * uniform,
        "2": torch.full_like(uniform, 2.0),
        "0": torch.zeros_like(uniform),
        "half 0": torch.where(uniform < 0.5, 0.0, 2 * uniform),
    }[kind]


def case(
    edges: list[int],
    heads: tuple[int, int] = (1, 2),
    dims: tuple[int, int] = (32, 64),
    gate: str = "typical",
    beta: str = "0 to 2",
    keys: str = "random",
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Float64 inputs that float32 holds exactly, the gradients of both outputs, cu_seqlens."""
    gen = torch.Generator().manual_seed(seed)
    (H, HV), (K, V), T, S = heads, dims, edges[-1], len(edges) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    k = {
        "random": lambda: normal(1, T, H, K),
        "positive": lambda: F.silu(normal(1, T, H, K)),
        "collinear": lambda: normal(1, 1, H, K) + 1e-3 * normal(1, T, H, K),
    }[keys]()
    uniform = torch.rand(1, T, HV, generator=gen, dtype=torch.float64)
    rates = GATES[gate](uniform), betas(beta, (1, T, HV), gen)
    leaves = [normal(1, T, H, K), k, normal(1, T, HV, V), *rates, 0.3 * normal(S, HV, K, V)]
    up = [normal(1, T, HV, V), normal(S, HV, K, V)]
    return [x.float().double() for x in leaves], [x.float().double() for x in up], torch.tensor(edges)


def assert_close(got: list[Tensor], true: list[Tensor], tolerance: float) -> None:
    errors = {name: error(x, y) for name, x, y in zip(NAMES, got, true)}
    assert all(e <= tolerance for e in errors.values()), errors
