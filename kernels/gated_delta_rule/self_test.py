"""Is the gated delta rule right on this machine? Seconds.

    python -m hybrid_ft.kernels.gated_delta_rule.self_test [device]

Outputs and every gradient against the float64 reference, and each run twice: the same bits, or else recomputing
activations in backward would train on other numbers. A miscompiled kernel gives finite, plausible, wrong gradients;
only a comparison finds them.
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.op import gated_delta_rule
from hybrid_ft.kernels.gated_delta_rule.reference import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.rounding import rounded_gated_delta_rule

NAMES = ("o", "final_state", "dq", "dk", "dv", "dg", "dbeta", "d_initial_state")
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "open": torch.zeros_like,
    "typical": lambda uniform: -0.2 * uniform,
    "closed": lambda uniform: torch.full_like(uniform, -20.0),
    "some closed": lambda uniform: torch.where(uniform < 0.1, -20.0, -0.05),
}
# The rounding of one float32 sum over a chunk of 64 tokens: below it nothing is asked of float32.
FLOAT32_FLOOR = 64**0.5 * 2**-24
# Orders of the K and V dimensions that float32 is run in, see ``largest_errors``.
ORDERS = 4
# as its layers call the rule
MAMBA2: dict[str, Any] = {"use_qk_l2norm": False, "correct": False}
# edges, value heads, (K, V), gate, options
CASES: list[tuple[list[int], int, tuple[int, int], str, dict[str, Any]]] = [
    ([0, 0, 1, 130], 2, (96, 192), "typical", {}),
    ([0, 200], 1, (96, 192), "some closed", {}),
    ([0, 63, 163], 2, (128, 128), "open", {}),
    ([0, 100], 1, (80, 48), "closed", {}),
    ([0, 0, 1, 130], 2, (128, 64), "typical", MAMBA2),
]


def case(
    edges: list[int],
    heads: tuple[int, int] = (1, 1),
    dims: tuple[int, int] = (32, 64),
    gate: str = "typical",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """q, k, v, g, beta (0 to 2) and an initial state, gradients of both outputs, cu_seqlens. On the CPU, in float64,
    and q, k, v and the gradient of o are numbers that ``dtype`` holds, the rest float32."""
    gen = torch.Generator().manual_seed(seed)
    (H, HV), (K, V), T, S = heads, dims, edges[-1], len(edges) - 1

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=gen, dtype=torch.float64)

    uniform = [torch.rand(1, T, HV, generator=gen, dtype=torch.float64) for _ in range(2)]
    rates = GATES[gate](uniform[0]), 2 * uniform[1]
    leaves = [normal(1, T, H, K), normal(1, T, H, K), normal(1, T, HV, V), *rates, 0.3 * normal(S, HV, K, V)]
    up = [normal(1, T, HV, V), normal(S, HV, K, V)]
    narrow = [x.to(dtype if i < 3 else torch.float32).double() for i, x in enumerate(leaves)]
    return narrow, [up[0].to(dtype).double(), up[1].float().double()], torch.tensor(edges)


def results(
    rule: Callable[..., Any],
    leaves: list[Tensor],
    up: list[Tensor],
    cu_seqlens: Tensor | None,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    **options: Any,
) -> list[Tensor]:
    """Both outputs and all six gradients; q, k and v in ``dtype``, the rest in float32 unless that is float64."""
    rest = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [x.detach().to(device, dtype if i < 3 else rest).requires_grad_() for i, x in enumerate(leaves)]
    *inputs, initial_state = leaves
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(device)
    outputs = rule(*inputs, cu_seqlens=cu_seqlens, initial_state=initial_state, output_final_state=True, **options)
    up = [dx.to(device, x.dtype) for x, dx in zip(outputs, up)]
    grads = torch.autograd.grad(outputs, leaves, up, allow_unused=True, materialize_grads=True)
    return [x.detach() for x in (*outputs, *grads)]


def error(x: Tensor, true: Tensor) -> float:
    """Relative L2."""
    x = x.detach().cpu().double()
    return float((x - true).norm() / true.norm().clamp_min(1e-300)) if true.numel() else 0.0


def reordered(xs: list[Tensor], dims: str, by_k: Tensor, by_v: Tensor) -> list[Tensor]:
    """``dims`` says what each ends in: K, V, S for both, a dot for neither."""
    orders = {"K": lambda x: x[..., by_k], "V": lambda x: x[..., by_v], "S": lambda x: x[..., by_k, :][..., by_v]}
    return [orders[dim](x) if dim in orders else x for dim, x in zip(dims, xs, strict=True)]


def reference_errors(
    leaves: list[Tensor], up: list[Tensor], cu_seqlens: Tensor, true: list[Tensor], **options: Any
) -> list[float]:
    """The reference's own in float32, see ``largest_errors``."""

    def errors(leaves: list[Tensor], up: list[Tensor], cu_seqlens: Tensor, true: list[Tensor]) -> list[float]:
        got = results(gated_delta_rule_reference, leaves, up, cu_seqlens, torch.float32, **options)
        return [error(x, y) for x, y in zip(got, true)]

    return largest_errors(errors, leaves, up, cu_seqlens, true)


def largest_errors(
    errors: Callable[..., list[float]],
    leaves: list[Tensor],
    up: list[Tensor],
    cu_seqlens: Tensor,
    true: list[Tensor],
    orders: int = ORDERS,
) -> list[float]:
    """Of each result, what ``errors`` of these four finds in so many ``orders`` of the K and V dimensions.

    An element of dg or dbeta is one sum of K V terms that may cancel several hundred times, and where the gates
    are shut one element is nearly all of the tensor: the error is then a single random rounding, in one order
    often next to none.
    """
    gen = torch.Generator().manual_seed(0)
    largest = [0.0] * len(NAMES)
    for i in range(orders):
        by = [torch.randperm(n, generator=gen) if i else torch.arange(n) for n in leaves[5].shape[2:]]
        inputs = reordered(leaves, "KKV..S", *by), reordered(up, "VS", *by), cu_seqlens
        found = errors(*inputs, reordered(true, "VSKKV..S", *by))
        largest = [max(pair) for pair in zip(largest, found)]
    return largest


def allowed(
    leaves: list[Tensor],
    up: list[Tensor],
    cu_seqlens: Tensor,
    true: list[Tensor],
    dtype: torch.dtype,
    **options: Any,
) -> list[float]:
    """For each result twice the relative error that is the dtype's own: float32, the reference's; 16 bits, what
    rounding the products' operands costs."""
    if dtype == torch.float32:
        return [max(2 * x, FLOAT32_FLOOR) for x in reference_errors(leaves, up, cu_seqlens, true, **options)]
    return [2 * x for x in rounding_errors(leaves, up, cu_seqlens, true, dtype, **options)]


def rounding_errors(
    leaves: list[Tensor],
    up: list[Tensor],
    cu_seqlens: Tensor,
    true: list[Tensor],
    dtype: torch.dtype,
    **options: Any,
) -> list[float]:
    """What the kernels' equations are off by in torch where ``dtype`` rounds the products' operands."""
    H, group = leaves[0].shape[2], leaves[2].shape[2] // leaves[0].shape[2]
    many = [x.repeat_interleave(group, 2) if i < 2 else x for i, x in enumerate(leaves)]
    rounded = [x.to(dtype if i < 3 else torch.float32) for i, x in enumerate(many)]
    own = rounded_gated_delta_rule(rounded, [up[0].to(dtype), up[1].float()], cu_seqlens, **options)
    own[2:4] = [x.float().unflatten(2, (H, group)).sum(3) for x in own[2:4]]
    return [error(x, y) for x, y in zip(own, true)]


def self_test(device: str) -> Iterator[str]:
    """What is wrong, line by line; nothing if all is right."""
    for edges, heads, dims, gate, options in CASES:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = case(edges, (heads, heads), dims, gate, dtype)
            true = results(gated_delta_rule_reference, *inputs, **options)
            limits = allowed(*inputs, true, dtype, **options)
            got, again = (results(gated_delta_rule, *inputs, dtype, device, **options) for _ in range(2))
            where = f"{dtype} K={dims[0]} V={dims[1]} {gate} segments {edges}{' Mamba-2' if options else ''}"
            for name, x, y, t, limit in zip(NAMES, got, again, true, limits):
                if not error(x, t) <= limit:
                    yield f"{where}: {name} is off by {error(x, t):.1e}, more than {limit:.1e}"
                if not torch.equal(x, y):
                    yield f"{where}: {name} differs from one run to the next"


def main() -> int:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda" if torch.cuda.is_available() else "cpu"
    wrong = list(self_test(device))
    print("\n".join(wrong) or f"gated delta rule on {device}: outputs, gradients and repeatability are right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
