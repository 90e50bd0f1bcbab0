"""The gated delta rule's Triton kernels in Triton's interpreter, in float32, and what makes them right."""

from functools import partial
from typing import Any

import torch
from delta_rule_roundings import expected_errors_of_dg
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import (
    FLOAT32_FLOOR,
    NAMES,
    ORDERS,
    error,
    largest_errors,
    results,
    rounding_errors,
)

Inputs = tuple[list[Tensor], list[Tensor], Tensor]
DG = NAMES.index("dg")


def rule(*inputs: Tensor, output_final_state: bool, keep: bool = False, **options: Any) -> Any:
    """``inputs``: q, k, v, g and beta."""
    from hybrid_ft.kernels.gated_delta_rule.gpu.autograd import triton_gated_delta_rule

    before = options["cu_seqlens"], options["initial_state"], options.get("scale", inputs[0].shape[3] ** -0.5)
    l2norm, correct = (options.get(name, True) for name in ("use_qk_l2norm", "correct"))
    return triton_gated_delta_rule(*inputs, *before, l2norm, keep, correct)


def assert_right(inputs: Inputs, keep: bool = False, **options: bool) -> None:
    """The kernels' results are those of the float64 reference. New memory is NaN throughout.

    Off by at most twice what the kernels' equations are off by in torch's float32, in the worst of some orders of its
    sums, or one sum over a chunk. Where elements of dg cancel, torch may happen to be far better than float32 is: dg is
    then held to the worst of more orders, and each of its elements to twice what an analysis of its roundings expects,
    which no order of sums decides.
    """
    true = results(gated_delta_rule_reference, *inputs, **options)
    errors_of = partial(rounding_errors, dtype=torch.float32, **options)
    limits = [2 * max(x, FLOAT32_FLOOR) for x in largest_errors(errors_of, *inputs, true)]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        got = results(rule, *inputs, torch.float32, keep=keep, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    errors = {n: (error(x, t), limit) for n, x, t, limit in zip(NAMES, got, true, limits)}
    beyond = {n: pair for n, pair in errors.items() if not pair[0] <= pair[1]}
    if set(beyond) == {"dg"}:
        assert is_rounded(got[DG], true[DG], expected_errors_of_dg(*inputs, **options)), beyond
        limit = 2 * max(largest_errors(errors_of, *inputs, true, orders=4 * ORDERS)[DG], FLOAT32_FLOOR)
        beyond = {} if beyond["dg"][0] <= limit else {"dg": (beyond["dg"][0], limit)}
    assert beyond == {}, beyond


def is_rounded(got: Tensor, true: Tensor, expected: Tensor) -> bool:
    """Whether each element is off by at most twice what is ``expected`` of it in root mean square."""
    return bool(((got.double() - true).abs() <= 2 * expected).all())
