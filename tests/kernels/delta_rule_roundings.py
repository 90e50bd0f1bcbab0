"""What float32 may be off by in dg, rounding by rounding."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hybrid_ft.kernels.gated_delta_rule.rounding import rounded_gated_delta_rule

ROUNDING = 2.0**-48 / 3
"""Mean square of one float32 rounding of a number around 1: it is spread evenly over half a last place, 2^-24, to
either side."""
ELEMENTWISE = ("mul", "add", "sub", "exp", "rsqrt", "square", "linalg_solve_triangular")


class Roundings(TorchFunctionMode):
    """Inside it every operation on float64 gives its result plus a zero that stands for its rounding in float32;
    ``found`` has these zeros and the mean squares of what they stand for.

    An operation on elements rounds once, by ``ROUNDING`` times the square of the result. A sum of n terms t rounds each
    of its partial sums s_k. With the terms in a random order s_k is a sample without replacement, so that the sum over
    k of the mean of s_k^2 is (n + 1) / 6 times the sum of the t^2 and (n + 1) / 3 times the square of the whole. A
    cumulated sum has its own partial sums, and each is carried on. Log gates are cumulated in float64: what no rounding
    has reached is cumulated and subtracted as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Tensor, Tensor]] = []

    def _rounded(self, x: Tensor, mean_square: Tensor) -> Tensor:
        zero = torch.zeros_like(x, requires_grad=True)
        self.found.append((zero, ROUNDING * mean_square))
        return x + zero

    def _sum(self, x: Tensor, terms: Tensor, squares: Tensor, n: int) -> Tensor:
        return self._rounded(x, (n + 1) / 6 * squares + (n + 1) / 3 * terms.square())

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, exact = func.__name__, not any(isinstance(x, Tensor) and x.requires_grad for x in args)
        if name == "cumsum" and not exact:
            x = args[0]
            return func(self._rounded(x, func(x.detach(), *args[1:]).square()), *args[1:])
        if name == "sum":
            x, dims = args[0], args[1:] or range(args[0].dim())
            for dim in sorted(dims, reverse=True):  # row by row, then the rows' sums
                x = self._sum(x.sum(dim), x.detach().sum(dim), x.detach().square().sum(dim), x.shape[dim])
            return x
        result = func(*args, **(kwargs or {}))
        if name == "matmul":
            x, y = (one.detach() for one in args)
            return self._sum(result, result.detach(), x.square() @ y.square(), x.shape[-1])
        if name in ELEMENTWISE and not (name == "sub" and exact):
            return self._rounded(result, result.detach().square())
        return result


def expected_errors_of_dg(leaves: list[Tensor], up: list[Tensor], cu_seqlens: Tensor, **options: bool) -> Tensor:
    """Root mean square, [1, T, HV], of the error that float32 makes in each element of dg where it computes by the
    kernels' equations. Seconds: one backward pass an element.

    An error analysis of first order. The equations run in float64, and each result of an operation is left a place for
    its rounding, r. To first order an element of dg is off by the sum over all of these of its derivative by r times
    r, and roundings have mean 0 and do not depend on one another: the mean square of the error is the sum of the
    squared derivatives times the mean squares of r. So what cancels counts as what it is, a sum of terms that are each
    rounded, and so does a rounding that reaches the element by two ways, whose derivatives cancel. It has no part that
    a CPU's order of sums decides.
    """
    many = [x.repeat_interleave(leaves[2].shape[2] // leaves[0].shape[2], 2) for x in leaves[:2]] + leaves[2:]
    with Roundings() as roundings:
        dg = rounded_gated_delta_rule(many, up, cu_seqlens, **options)[5]
    zeros = [zero for zero, _ in roundings.found]
    squares = []
    for element in dg.flatten():
        by = torch.autograd.grad(element, zeros, retain_graph=True, materialize_grads=True, allow_unused=True)
        squares.append(sum((x.square() * size).sum() for x, (_, size) in zip(by, roundings.found, strict=True)))
    return torch.stack(squares).sqrt().reshape(dg.shape)
