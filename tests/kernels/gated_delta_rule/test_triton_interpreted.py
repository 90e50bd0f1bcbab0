"""The Triton kernels in Triton's interpreter, in float32: outputs and every gradient against the float64 reference.

The interpreter must be chosen before triton is imported, so these tests run in a process of their own, which
``test_interpreter`` starts in two halves. It knows nothing of warps, layouts and races, and its bfloat16 is wrong:
test_triton_compiled.py and test_triton_gpu.py are for those. A GPU has the kernels for 16 bits alone; here float32
shows what their rounding would hide.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule_reference
from hybrid_ft.kernels.gated_delta_rule.self_test import (
    FLOAT32_FLOOR,
    NAMES,
    ORDERS,
    case,
    error,
    largest_errors,
    results,
    rounding_errors,
)

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
inside = pytest.mark.skipif(not INTERPRETED, reason="run by test_interpreter, in a process of its own")
outside = pytest.mark.skipif(INTERPRETED, reason="starts the process that this is")


def interpret(select: str) -> None:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "pytest", "-q", "--confcutdir=tests", "-p", "no:cacheprovider", "-m", select]
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([*command, __file__], cwd=root, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@outside
@pytest.mark.kernels
@pytest.mark.parametrize("half", ["not kernels", "kernels"])
def test_interpreter(half: str) -> None:
    interpret(half)


def rule(q, k, v, g, beta, *, cu_seqlens, initial_state, output_final_state, scale=None, keep=False, **options):
    from hybrid_ft.kernels.gated_delta_rule.gpu.autograd import triton_gated_delta_rule

    scale = q.shape[3] ** -0.5 if scale is None else scale
    l2norm, correct = (options.get(name, True) for name in ("use_qk_l2norm", "correct"))
    return triton_gated_delta_rule(q, k, v, g, beta, cu_seqlens, initial_state, scale, l2norm, keep, correct)


def assert_right(inputs: tuple[list[Tensor], list[Tensor], Tensor], keep: bool = False, **options: bool) -> None:
    """At most twice what the kernels' equations are off by in torch's float32, in the worst of some orders of its sums,
    or one sum over a chunk. New memory is NaN throughout.

    Where one element that cancels is most of dg, four orders seldom hold the worst: which sums a CPU's matrix product
    makes first decides, so the orders are then four times as many.
    """
    true = results(gated_delta_rule_reference, *inputs, **options)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        got = results(rule, *inputs, torch.float32, keep=keep, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    beyond: dict[str, tuple[float, float]] = {}
    for orders in (ORDERS, 4 * ORDERS):
        own = largest_errors(partial(rounding_errors, dtype=torch.float32, **options), *inputs, true, orders)
        limits = [2 * max(x, FLOAT32_FLOOR) for x in own]
        errors = {n: (error(x, t), limit) for n, x, t, limit in zip(NAMES, got, true, limits)}
        beyond = {n: pair for n, pair in errors.items() if not pair[0] <= pair[1]}
        if not beyond:
            break
    assert beyond == {}


@inside
@pytest.mark.parametrize(
    ("edges", "heads", "dims", "gate", "keep"),
    [
        ([0, 0, 1, 1, 64, 130], (1, 2), (80, 48), "typical", False),
        ([0, 100], (1, 1), (96, 192), "closed", True),
        ([0, 63], (2, 2), (16, 16), "open", False),
    ],
    ids=str,
)
def test_short(edges: list[int], heads: tuple[int, int], dims: tuple[int, int], gate: str, keep: bool) -> None:
    assert_right(case(edges, heads, dims, gate), keep=keep)


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("gate", ["open", "typical", "closed", "some closed"])
@pytest.mark.parametrize("dims", [(96, 192), (128, 128), (16, 16), (80, 48)], ids=str)
@pytest.mark.parametrize("length", [1, 63, 64, 100, 130])
def test_lengths(length: int, dims: tuple[int, int], gate: str) -> None:
    assert_right(case([0, length], (1, 1), dims, gate, seed=length))


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("heads", [(2, 2), (1, 3), (2, 4)], ids=str)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("edges", [[0, 0, 1, 1, 2, 65, 130, 195, 195], [0, 128, 129]], ids=str)
def test_segments_and_heads(edges: list[int], heads: tuple[int, int], keep: bool) -> None:
    assert_right(case(edges, heads, (48, 32)), keep=keep)


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes every segment that is longer than so many chunks one that is cut into pieces of as many."""
    from hybrid_ft.kernels.gated_delta_rule.gpu import call

    def to(chunks: int) -> None:
        monkeypatch.setattr(call, "SHORTEST", chunks)
        monkeypatch.setattr(call, "PROGRAMS", 2**30)

    return to


@inside
@pytest.mark.parametrize(
    ("edges", "heads", "dims", "gate", "piece", "keep"),
    [
        pytest.param([0, 200], (1, 1), (16, 32), "typical", 1, False),
        *(
            pytest.param(*values, marks=pytest.mark.kernels)
            for values in (
                ([0, 260], (1, 1), (96, 192), "typical", 2, False),
                ([0, 260], (1, 1), (96, 192), "open", 1, True),
                ([0, 200], (1, 2), (128, 128), "some closed", 1, False),
                ([0, 0, 1, 150, 150, 351, 420], (2, 2), (80, 48), "typical", 1, True),
                ([0, 0, 129, 322, 322], (1, 2), (48, 32), "closed", 2, False),
            )
        ),
    ],
    ids=str,
)
def test_pieces(
    edges: list[int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    gate: str,
    piece: int,
    keep: bool,
    short_pieces: Callable[[int], None],
) -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu.call import Call

    short_pieces(piece)
    inputs = case(edges, heads, dims, gate)
    assert Call(inputs[0][0], inputs[0][2], inputs[2]).piece == piece
    assert_right(inputs, keep=keep)


def test_what_is_cut_into_pieces() -> None:
    """Only what would leave a chip idle, by sizes alone; nothing of a length that is short."""
    from hybrid_ft.kernels.gated_delta_rule.gpu.call import Call

    def piece(tokens: int, heads: int, segments: int = 1) -> int:
        q, v = (torch.empty(1, tokens, heads, size, device="meta") for size in (96, 192))
        return Call(q, v, torch.empty(segments + 1, device="meta")).piece

    assert piece(32768, 30) == 0
    assert piece(32768, 29) == 171
    assert piece(32768, 4) == 32
    assert piece(2**17, 4) == 94
    assert piece(32768, 29, segments=2) == 0
    assert piece(2112, 4) == 32
    assert piece(2048, 4) == 0


def test_backward_is_cut_where_its_own_programs_are_few() -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu.call import Call

    def cut(heads: int, halves: int) -> bool:
        q, v = (torch.empty(1, 32768, heads, size, device="meta") for size in (96, 192))
        return Call(q, v, torch.empty(2, device="meta")).cut_backward(halves)

    assert cut(4, 2) and cut(14, 2) and not cut(16, 2)
    assert cut(16, 1) and cut(29, 1) and not cut(30, 1)


@inside
def test_forward_alone_in_pieces(short_pieces: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu.call import Call

    short_pieces(1)
    monkeypatch.setattr(Call, "cut_backward", lambda self, halves: False)
    assert_right(case([0, 200], (1, 1), (16, 32)))


def test_the_chunks_of_edges_are_counted_once() -> None:
    """For all layers, as long as nobody writes to the edges."""
    from hybrid_ft.kernels.gated_delta_rule.gpu import call

    edges = torch.tensor([0, 100, 300], dtype=torch.int32)
    q, v = (torch.empty(1, 300, 4, size, device="meta") for size in (96, 192))

    def cut(edges: torch.Tensor, q: torch.Tensor = q) -> call.Chunks:
        sizes = call.Call(q, v, edges)
        sizes.like = torch.empty(0)
        return call.cut(sizes, edges)

    first = cut(edges)
    assert cut(edges) is first and cut(edges.view(3)) is first
    assert cut(edges.clone()) is not first
    assert torch.equal(cut(edges[1:]).first_chunk, torch.tensor([0, 4], dtype=torch.int32))
    edges[1] = 40
    second = cut(edges)
    assert torch.equal(first.first_chunk, torch.tensor([0, 2, 6], dtype=torch.int32))
    assert torch.equal(second.first_chunk, torch.tensor([0, 1, 6], dtype=torch.int32))
    for _ in range(2 * call.MAPS):
        cut(edges.clone())
    assert len(call._maps) == call.MAPS
    with torch.inference_mode():
        assert cut(torch.tensor([0, 300])) is not None


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("dims", [(K, V) for K in (112, 144, 240, 256) for V in (80, 256)], ids=str)
def test_head_sizes(dims: tuple[int, int]) -> None:
    assert_right(case([0, 70], (1, 1), dims))


@inside
@pytest.mark.kernels
@pytest.mark.parametrize("beta", [0.0, 1e-6, 2.0])
def test_betas(beta: float) -> None:
    """dbeta is right where beta is 0: nothing was divided by it."""
    leaves, up, cu_seqlens = case([0, 100], (1, 2), (32, 48))
    leaves[4] = torch.full_like(leaves[4], beta).float().double()
    assert_right((leaves, up, cu_seqlens))
    leaves[4][:, ::2] = 2 - leaves[4][:, ::2]
    assert_right((leaves, up, cu_seqlens))


@inside
def test_no_norm_and_a_scale() -> None:
    leaves, up, cu_seqlens = case([0, 70], (1, 1), (32, 16))
    leaves[1] = torch.nn.functional.normalize(leaves[1], dim=-1).float().double()
    options = {"scale": 0.3, "use_qk_l2norm": False}
    true = results(gated_delta_rule_reference, leaves, up, cu_seqlens, **options)
    got = results(rule, leaves, up, cu_seqlens, torch.float32, **options)
    assert max(error(x, t) for x, t in zip(got, true)) < 1e-6


@inside
@pytest.mark.parametrize(
    ("edges", "heads", "dims", "gate", "piece", "keep"),
    [
        ([0, 0, 1, 70, 71, 130], (2, 4), (48, 16), "typical", None, False),
        ([0, 200], (1, 1), (16, 32), "typical", 1, True),
        *(
            pytest.param(*values, marks=pytest.mark.kernels)
            for values in (
                ([0, 100], (1, 2), (128, 64), "closed", None, True),
                ([0, 130], (1, 2), (256, 64), "open", None, False),
                ([0, 0, 1, 150, 150, 351, 420], (1, 3), (80, 48), "some closed", 1, False),
            )
        ),
    ],
    ids=str,
)
def test_without_the_correction(
    edges: list[int],
    heads: tuple[int, int],
    dims: tuple[int, int],
    gate: str,
    piece: int | None,
    keep: bool,
    short_pieces: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mamba-2, with time steps beyond 2: nothing is inverted."""
    from hybrid_ft.kernels.gated_delta_rule.gpu import intra

    monkeypatch.setattr(intra, "_write_inverse", None)
    if piece:
        short_pieces(piece)
    leaves, up, cu_seqlens = case(edges, heads, dims, gate)
    leaves[4] = 2 * leaves[4]
    assert_right((leaves, up, cu_seqlens), keep, use_qk_l2norm=False, correct=False)


@inside
def test_dense_batch_by_its_strides() -> None:
    """Two rows whose memory is neither contiguous nor in one run: heads before tokens, and a row
    longer than the view."""
    leaves, up, cu_seqlens = case([0, 70, 140], (2, 2), (32, 16))
    true = results(rule, leaves, up, cu_seqlens, torch.float32)
    rows = [x.unflatten(1, (2, 70)).squeeze(0).float() for x in (*leaves[:5], up[0])]
    by_head = [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in rows[:5]]
    longer = [torch.cat([x, torch.full_like(x[:, :5], torch.nan)], 1)[:, :70].requires_grad_() for x in rows[:5]]
    for inputs in (by_head, longer):
        assert not inputs[0].is_contiguous()
        state = leaves[5].float().requires_grad_()
        outputs = rule(*inputs, cu_seqlens=None, initial_state=state, output_final_state=True)
        grads = torch.autograd.grad(outputs, [*inputs, state], [rows[5], up[1].float()])
        for name, x, t in zip(NAMES, (*outputs, *grads), true):
            assert torch.equal(x.reshape(t.shape), t), name


@inside
def test_offsets_past_int32() -> None:
    """Views whose tokens lie 10 GB apart end to end; what lies between is never touched and takes no memory."""
    leaves, up, cu_seqlens = case([0, 30, 100], (1, 1), (16, 16))
    true = results(rule, leaves, up, cu_seqlens, torch.float32)
    stride = 2**31 // 90

    def wide(x: Tensor) -> Tensor:
        view = torch.empty(100 * stride).as_strided(x.shape, (0, stride, 16, 1))
        return view.copy_(x)

    q, k, v, do = (wide(x) for x in (*leaves[:3], up[0]))
    inputs = [x.requires_grad_() for x in (q, k, v, *(x.float() for x in leaves[3:]))]
    outputs = rule(*inputs[:5], cu_seqlens=cu_seqlens, initial_state=inputs[5], output_final_state=True)
    got = (*outputs, *torch.autograd.grad(outputs, inputs, [do, up[1].float()]))
    assert all(torch.equal(x, t) for x, t in zip(got, true))


@inside
def test_an_expanded_gradient_twice() -> None:
    leaves, up, cu_seqlens = case([0, 66], (1, 1), (16, 16))
    q, k, v, g, beta = (x.float().requires_grad_() for x in leaves[:5])
    o, _ = rule(q, k, v, g, beta, cu_seqlens=cu_seqlens, initial_state=None, output_final_state=True)
    ones = results(
        gated_delta_rule_reference,
        [*leaves[:5], torch.zeros_like(leaves[5])],
        [torch.ones_like(up[0]), torch.zeros_like(up[1])],
        cu_seqlens,
    )
    grads = torch.autograd.grad(o.sum(), [q, k, v, g, beta], retain_graph=True)
    assert max(error(x, t) for x, t in zip(grads, ones[2:7])) < 2e-6
    again = torch.autograd.grad(o.sum(), [q, k, v, g, beta])
    assert all(torch.equal(x, y) for x, y in zip(grads, again))


@inside
def test_no_tokens() -> None:
    leaves, _, _ = case([0, 0], (1, 1), (16, 16))
    inputs = [x.float().requires_grad_() for x in leaves]
    for edges in (torch.tensor([0, 0]), None):
        o, final_state = rule(*inputs[:5], cu_seqlens=edges, initial_state=inputs[5], output_final_state=True)
        assert o.shape == (1, 0, 1, 16)
        assert torch.equal(final_state, inputs[5])
        (d_state,) = torch.autograd.grad(final_state.sum(), inputs[5])
        assert torch.equal(d_state, torch.ones_like(d_state))


@inside
def test_nothing_of_a_neighbour_reaches_a_segment() -> None:
    """Not even what arithmetic cannot cancel: the neighbours are NaN."""
    leaves, up, cu_seqlens = case([0, 50, 110, 130], (1, 1), (32, 16))
    clean = results(rule, leaves, up, cu_seqlens, torch.float32)
    for x in (*leaves[:5], up[0]):
        x[:, :50] = x[:, 110:] = torch.nan
    for x in (leaves[5], up[1]):
        x[0] = x[2] = torch.nan
    poisoned = results(rule, leaves, up, cu_seqlens, torch.float32)
    middle = [slice(1, 2) if name in ("final_state", "d_initial_state") else (0, slice(50, 110)) for name in NAMES]
    assert all(torch.equal(x[i], y[i]) for x, y, i in zip(poisoned, clean, middle))


@inside
def test_a_gate_that_is_nan_is_not_hidden() -> None:
    leaves, _, cu_seqlens = case([0, 30], (1, 1), (16, 16))
    leaves[3][0, 7] = torch.nan
    o, _ = rule(*(x.float() for x in leaves[:5]), cu_seqlens=cu_seqlens, initial_state=None, output_final_state=False)
    assert o[0, 7:].isnan().all()


@inside
def test_operators_are_what_they_say(short_pieces: Callable[[int], None]) -> None:
    """Their fake versions have the true shapes and dtypes, and a layer compiles whole."""
    from hybrid_ft.kernels.gated_delta_rule.gpu.autograd import forward_op

    leaves, _, cu_seqlens = case([0, 10, 66], (1, 2), (32, 16))
    inputs = [x.float().requires_grad_() for x in leaves]
    state = leaves[5][:1].float().requires_grad_()
    # without cu_seqlens: with them the last chunks may be memory that nobody wrote
    for keep, correct in ((False, True), (True, False)):
        torch.library.opcheck(forward_op, (*inputs[:5], None, state, 0.1, True, keep, correct))
    short_pieces(1)

    def layer(*xs: Tensor) -> Tensor:
        o, _ = rule(*xs[:5], cu_seqlens=cu_seqlens, initial_state=xs[5], output_final_state=True)
        return o * 2

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    eager, whole = (torch.autograd.grad(f(*inputs).sum(), inputs) for f in (layer, compiled))
    assert all(torch.equal(x, y) for x, y in zip(eager, whole))
