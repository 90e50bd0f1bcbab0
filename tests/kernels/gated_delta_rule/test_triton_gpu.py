"""The gated delta rule on a GPU: right in every dtype, bit for bit the same again, and never waiting for the device."""

import pytest
import torch

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule, gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import NAMES, allowed, case, error, results, self_test

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured"),
]


def test_self_test() -> None:
    assert list(self_test("cuda")) == []


PACKED = [0, 0, 1, 1, 2, 65, 130, 130]
GATES = ["open", "typical", "closed", "some closed"]
# every edge and gate where heads are Olmo Hybrid's, a few elsewhere: a kernel is compiled anew for each size and dtype
CASES = [(edges, (96, 192), gate) for edges in ([0, 1], [0, 63], [0, 64], [0, 100], [0, 130], PACKED) for gate in GATES]
CASES += [(edges, (128, 128), gate) for edges in ([0, 100], PACKED) for gate in ("typical", "some closed")]
SMALL_AND_LARGE = [(PACKED, dims, "typical") for dims in [(16, 16), (80, 48), (256, 256)]]
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


QUICK = [(edges, (96, 192), gate) for edges in ([0, 1], [0, 130], PACKED) for gate in GATES[1:]]
QUICK += [(PACKED, (128, 128), "typical")]


@pytest.mark.parametrize(
    ("dtype", "edges", "dims", "gate"),
    [
        pytest.param(dtype, *case, marks=[pytest.mark.quick] if dtype in DTYPES[:2] and case in QUICK else [])
        for dtype in DTYPES
        for case in [*CASES, *(SMALL_AND_LARGE if dtype in DTYPES[:2] else [])]
    ],
    ids=str,
)
def test_outputs_and_gradients(dtype: torch.dtype, edges: list[int], dims: tuple[int, int], gate: str) -> None:
    """At most twice the error that the dtype's rounding costs by itself."""
    inputs = case(edges, (2, 2), dims, gate, dtype)
    true = results(gated_delta_rule_reference, *inputs)
    limits = allowed(*inputs, true, dtype)
    for keep in (False, True):
        got = results(gated_delta_rule, *inputs, dtype, "cuda", keep_states=keep)
        errors = {n: (error(x, t), limit) for n, x, t, limit in zip(NAMES, got, true, limits)}
        assert {n: pair for n, pair in errors.items() if not pair[0] <= pair[1]} == {}


@pytest.mark.parametrize("heads", [(1, 3), (2, 4)], ids=str)
def test_value_heads(heads: tuple[int, int]) -> None:
    inputs = case([0, 70, 200], heads, (96, 192), dtype=torch.bfloat16)
    true = results(gated_delta_rule_reference, *inputs)
    limits = allowed(*inputs, true, torch.bfloat16)
    got = results(gated_delta_rule, *inputs, torch.bfloat16, "cuda")
    assert all(error(x, t) <= limit for x, t, limit in zip(got, true, limits))


@pytest.mark.quick
def test_the_same_bits_again_at_full_size() -> None:
    leaves, up, cu_seqlens = case([0, 700, 4096], (30, 30), (96, 192), dtype=torch.bfloat16)
    first = results(gated_delta_rule, leaves, up, cu_seqlens, torch.bfloat16, "cuda")
    for _ in range(3):
        again = results(gated_delta_rule, leaves, up, cu_seqlens, torch.bfloat16, "cuda")
        assert all(torch.equal(x, y) for x, y in zip(first, again))


@pytest.mark.quick
def test_nothing_waits_for_the_device() -> None:
    leaves, up, cu_seqlens = case([0, 700, 1000], (2, 2), (96, 192), dtype=torch.bfloat16)
    inputs = [x.to("cuda", torch.bfloat16 if i < 3 else torch.float32).requires_grad_() for i, x in enumerate(leaves)]
    do, cu_seqlens = up[0].to("cuda", torch.bfloat16), cu_seqlens.to("cuda")
    gated_delta_rule(*inputs[:5], cu_seqlens=cu_seqlens)[0].backward(do)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gated_delta_rule(*inputs[:5], cu_seqlens=cu_seqlens, initial_state=inputs[5])[0].backward(do)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.grad is not None and x.grad.isfinite().all() for x in inputs)


@pytest.mark.quick
def test_offsets_past_int32() -> None:
    """A token's offset passes 2^31 where T * H * V does; a view into a large buffer makes that so with few tokens."""
    leaves, up, cu_seqlens = case([0, 100], (1, 1), (16, 16), dtype=torch.bfloat16)
    true = results(gated_delta_rule, leaves, up, cu_seqlens, torch.bfloat16, "cuda")[0]
    q, k, v, g, beta, state = (x.to("cuda", torch.bfloat16 if i < 3 else torch.float32) for i, x in enumerate(leaves))
    stride = 2**31 // 90
    wide = torch.empty(100 * stride, dtype=torch.bfloat16, device="cuda").as_strided(v.shape, (0, stride, 16, 1))
    wide.copy_(v)
    assert torch.equal(gated_delta_rule(q, k, wide, g, beta, cu_seqlens=cu_seqlens, initial_state=state)[0], true)


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory < 75e9, reason="needs 75 GB"
)
def test_numbers_past_int32() -> None:
    """A segment behind two billion numbers of v, o and their gradients has the results that it has alone."""
    T, H, (K, V), last = 374_000, 30, (96, 192), 200
    assert (T - last) * H * V > 2**31
    generator = torch.Generator("cuda").manual_seed(0)

    def made(*size: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.rand(1, T, H, *size, generator=generator, dtype=dtype, device="cuda")

    inputs = [made(K), made(K), made(V), -made(dtype=torch.float32), 2 * made(dtype=torch.float32)]
    do = torch.ones((), dtype=torch.bfloat16, device="cuda").expand(1, T, H, V)
    edges = torch.tensor([0, T - last, T], device="cuda")

    def run(leaves: list[torch.Tensor], do: torch.Tensor, edges: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.detach().requires_grad_() for x in leaves]
        o = gated_delta_rule(*leaves, cu_seqlens=edges)[0]
        return [x[:, -last:].clone() for x in (o.detach(), *torch.autograd.grad(o, leaves, do))]

    alone = run([x[:, -last:] for x in inputs], do[:, -last:], torch.tensor([0, last], device="cuda"))
    behind = run(inputs, do, edges)
    assert all(torch.equal(x, y) for x, y in zip(behind, alone))


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((24, 32), "q, k: got head size 24; on a GPU it must be a multiple of 16, from 16 to 256"),
        ((32, 272), "v: got head size 272"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_take(dims: tuple[int, int], message: str) -> None:
    leaves, _, _ = case([0, 5], dims=dims)
    with pytest.raises(ValueError, match=message):
        gated_delta_rule(*(x.to("cuda", torch.bfloat16) for x in leaves[:5]))
    o, _ = gated_delta_rule(*(x.to("cuda", torch.float32) for x in leaves[:5]))  # torch takes any
    assert o.isfinite().all()
