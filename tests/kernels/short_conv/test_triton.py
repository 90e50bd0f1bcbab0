"""The short convolution's Triton kernels, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.short_conv import short_conv_reference, short_conv_step

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def case(edges: list[int], D: int = 6, W: int = 4, tail: bool = True, final: bool = True):
    """x, weight and tail, gradients of both outputs, cu_seqlens."""
    gen = torch.Generator().manual_seed(edges[-1] + D)
    N, S = edges[-1], len(edges) - 1
    shapes = [(N, D), (D, W), (S, W - 1, D), (N, D), (S, W - 1, D)]
    x, weight, old, *up = (torch.randn(shape, generator=gen, dtype=torch.float64) for shape in shapes)
    return [x, weight, old if tail else None], up[: 1 + final], torch.tensor(edges, dtype=torch.int32)


def rules(cu_seqlens: Tensor | None, final: bool = True, biased: bool = False, activate: bool = True):
    """The kernels and the reference; ``biased``: with the weight's last column for a bias."""
    from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv

    def kernels(x, weight, tail):
        weight, bias = (weight[:, :-1], weight[:, -1]) if biased else (weight, None)
        edges = None if cu_seqlens is None else cu_seqlens.to(x.device)
        return triton_short_conv(x, weight, bias, edges, tail, final, activate)

    def reference(x, weight, tail):
        weight, bias = (weight[:, :-1], weight[:, -1]) if biased else (weight, None)
        options = {"cu_seqlens": cu_seqlens, "initial_tail": tail, "output_final_tail": final, "activate": activate}
        return short_conv_reference(x, weight, bias, **options)

    return kernels, reference


EDGES = [[0, 1], [0, 63], [0, 100], [0, 64, 128], [0, 0, 1, 3, 3, 6, 70, 70], [0, 0, 0]]


@pytest.mark.parametrize(
    ("edges", "W"),
    [(edges, 4) for edges in EDGES if edges != EDGES[4]]
    + [pytest.param(EDGES[4], 4, marks=pytest.mark.quick)]
    + [(EDGES[4], W) for W in (1, 2, 3)]
    # around the ends of backward's tiles of 64 - 3 tokens
    + [([0, 58, 61, 62, 122, 125, 190], 4)],
    ids=str,
)
def test_segments(assert_as_good, edges: list[int], W: int) -> None:
    leaves, up, cu_seqlens = case(edges, W=W)
    assert_as_good(*rules(cu_seqlens), leaves, up)


@pytest.mark.parametrize("edges", [EDGES[4], EDGES[3]], ids=str)
def test_bias(assert_as_good, edges: list[int]) -> None:
    leaves, up, cu_seqlens = case(edges)
    leaves[1] = torch.cat([leaves[1], leaves[1][:, :1]], 1)
    assert_as_good(*rules(cu_seqlens, biased=True), leaves, up)


@pytest.mark.parametrize(("W", "biased"), [(7, False), (7, True), (3, False)])
def test_without_silu(assert_as_good, W: int, biased: bool) -> None:
    """As in LFM2, of width 3, and LFM3, of width 7."""
    leaves, up, cu_seqlens = case(EDGES[4], W=W)
    if biased:
        leaves[1] = torch.cat([leaves[1], leaves[1][:, :1]], 1)
    assert_as_good(*rules(cu_seqlens, biased=biased, activate=False), leaves, up)


@pytest.mark.kernels
@pytest.mark.parametrize("D", [1, 33, 96])
@pytest.mark.parametrize("tail", [False, True])
def test_channels(assert_as_good, D: int, tail: bool) -> None:
    leaves, up, cu_seqlens = case([0, 2, 100], D, tail=tail)
    assert_as_good(*rules(cu_seqlens), leaves, up)


@pytest.mark.parametrize("final", [False, True])
def test_one_segment_without_edges(assert_as_good, final: bool) -> None:
    leaves, up, _ = case([0, 70], final=final)
    assert_as_good(*rules(None, final), leaves, up)


@pytest.mark.kernels
def test_many_segments(assert_as_good) -> None:
    """Halving finds each: one more than a power of two, and one less."""
    for segments in (3, 4, 5, 15, 17):
        leaves, up, cu_seqlens = case([i * i // 5 for i in range(segments + 1)], D=3)
        assert_as_good(*rules(cu_seqlens), leaves, up)


def test_only_the_final_tail_has_a_gradient(assert_as_good) -> None:
    leaves, up, cu_seqlens = case([0, 1, 8, 10])
    kernels, reference = rules(cu_seqlens)
    assert_as_good(lambda *xs: kernels(*xs)[1], lambda *xs: reference(*xs)[1], leaves, up[1:])


def test_by_strides(device: str) -> None:
    """Columns of a joined projection, and a gradient that is expanded: the same bits as from memory of their own."""
    leaves, _, cu_seqlens = case([0, 3, 80], D=8)
    kernels, _ = rules(cu_seqlens)
    x, weight, tail = (t.to(device, torch.float32) for t in leaves)
    wide = torch.cat([x * torch.nan, x, x * torch.nan], 1).requires_grad_()
    own = x.clone().requires_grad_()
    for tensor, view in ((own, own), (wide, wide[:, 8:16])):
        kernels(view, weight, tail)[0].sum().backward()
        assert torch.equal(kernels(view, weight, tail)[0], kernels(x, weight, tail)[0])
    assert torch.equal(wide.grad[:, 8:16], own.grad)


def test_nothing_of_a_neighbour_reaches_a_segment(device: str) -> None:
    """Not even what arithmetic cannot cancel: the neighbours are NaN."""
    (x, weight, tail), up, cu_seqlens = case([0, 5, 9, 14])
    kernels, _ = rules(cu_seqlens)

    def results() -> list[Tensor]:
        leaves = [t.to(device, torch.float32).requires_grad_() for t in (x, weight, tail)]
        outputs = kernels(*leaves)
        grads = torch.autograd.grad(outputs, [leaves[0], leaves[2]], [dy.to(device, torch.float32) for dy in up])
        return [*outputs, *grads]

    clean = results()
    x[:5] = x[9:] = up[0][:5] = up[0][9:] = tail[0] = tail[2] = up[1][0] = up[1][2] = torch.nan
    poisoned = results()
    for i, own in ((0, slice(5, 9)), (1, 1), (2, slice(5, 9)), (3, 1)):
        assert clean[i].isfinite().all()
        assert torch.equal(poisoned[i][own], clean[i][own])


def test_operators_are_what_they_say(device: str, assert_operators) -> None:
    from hybrid_ft.kernels.short_conv.gpu.launch import backward_op, forward_op

    leaves, up, cu_seqlens = case([0, 3, 20])
    x, weight, tail, dy, d_final = (t.to(device, torch.float32) for t in (*leaves, *up))
    cu_seqlens = cu_seqlens.to(device)
    x.requires_grad_()
    for old, final in ((None, False), (tail.clone().requires_grad_(), True)):
        bias = weight[:, 0].clone() if final else None
        back = dy, d_final if final else None, x.detach(), weight, bias, cu_seqlens, tail if final else None
        assert_operators(forward_op, backward_op, (x, weight, bias, cu_seqlens, old, final), back)


def test_what_the_kernels_cannot_take(device: str) -> None:
    kernels, _ = rules(None)
    x = torch.zeros(5, 2, device=device)
    with pytest.raises(ValueError, match="weight: got a width of 8; on a GPU it must be at most 7"):
        kernels(x, torch.zeros(2, 8, device=device), None)
    with pytest.raises(ValueError, match="x: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        kernels(x.double(), torch.zeros(2, 4, device=device), None)


def step(x: Tensor, tail: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    from hybrid_ft.kernels.short_conv.gpu.launch import triton_short_conv_step

    return triton_short_conv_step(x, tail, weight)


@pytest.mark.parametrize("W", [4, 1, 2])
@pytest.mark.parametrize(("B", "D"), [(1, 300), (3, 64), (40, 1), (0, 8)], ids=str)
def test_step(nan_memory, dtype, device: str, B: int, D: int, W: int) -> None:
    """At most twice the error that the torch path has in the same dtype; the tail is moved, not computed."""
    (x, weight, tail), _, _ = case(list(range(B + 1)), D, W)
    own, true = ([t.to(to) for t in (x.to(dtype), tail.to(dtype), weight.to(dtype))] for to in (dtype, torch.float64))
    there = [t.to(device) for t in own]
    before = there[1].clone()
    (y, new), (r, moved), (t, _) = step(*there), short_conv_step(*own), short_conv_step(*true)
    assert torch.equal(there[1], before) and torch.equal(new.cpu(), moved)
    assert y.dtype == dtype and y.shape == t.shape
    rounding = torch.finfo(dtype).eps / 2 * float(t.norm())
    assert float((y.cpu().double() - t).norm()) <= max(2 * float((r.double() - t).norm()), rounding)


def test_steps_are_the_convolution(device: str) -> None:
    (x, weight, tail), _, _ = case([0, 9])
    y, final = short_conv_reference(x, weight, initial_tail=tail, output_final_tail=True)
    now, weight, outputs = tail.to(device, torch.float32), weight.to(device, torch.float32), []
    for row in x.to(device, torch.float32).split(1):
        out, now = step(row, now, weight)
        outputs.append(out)
    torch.testing.assert_close(torch.cat(outputs).cpu().double(), y, rtol=1e-5, atol=1e-6)
    assert torch.equal(now.cpu(), final.float())


def test_step_by_strides(device: str) -> None:
    """Columns of a joined projection, a window's last rows, a tail that lies channel by channel or is wider than x."""
    (x, weight, tail), _, _ = case([0, 1, 2, 3], D=8)
    x, weight, tail = (t.to(device, torch.float32) for t in (x, weight, tail.half()))
    true = step(x, tail, weight)
    joined = torch.cat([x * torch.nan, x, x * torch.nan], 1)[:, 8:16]
    window = torch.cat([tail[:, :1] * torch.nan, tail], 1)[:, 1:]
    by_channel = tail.mT.contiguous().mT
    for other in (window, by_channel, tail.half()):
        assert all(torch.equal(a, b) for a, b in zip(step(joined, other, weight.T.contiguous().T), true))


def test_step_operator_is_what_it_says(device: str) -> None:
    from hybrid_ft.kernels.short_conv.gpu.launch import step_op

    (x, weight, tail), _, _ = case([0, 1, 2])
    inputs = [t.to(device, torch.float32) for t in (x, tail, weight)]
    torch.library.opcheck(step_op, inputs)
    whole = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(whole(*inputs), step(*inputs)))
    with pytest.raises(ValueError, match="tail: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        step(inputs[0], inputs[1].double(), inputs[2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_a_steps_device_picks_the_path_and_nothing_waits_for_it() -> None:
    (x, weight, tail), _, _ = case([0, 1, 2, 3], D=300)
    inputs = [t.to("cuda", torch.bfloat16) for t in (x, tail, weight)]
    true = step(*inputs)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = short_conv_step(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, true))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_nothing_waits_for_the_device() -> None:
    from hybrid_ft.kernels.short_conv import short_conv

    leaves, up, cu_seqlens = case([0, 300, 1000], D=96)
    x, weight, tail = (t.to("cuda", torch.bfloat16).requires_grad_() for t in leaves)
    up, cu_seqlens = [t.to("cuda", torch.bfloat16) for t in up], cu_seqlens.to("cuda")
    options = {"cu_seqlens": cu_seqlens, "initial_tail": tail, "output_final_tail": True}

    def both() -> list[torch.Tensor]:
        outputs = short_conv(x, weight, **options)
        alone, _ = short_conv(x, weight)
        return [*outputs, alone, *torch.autograd.grad(outputs, (x, weight, tail), up)]

    true = both()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = both()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(got, true))


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("D", [2880, 5760, 100])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, D: int) -> None:
    from hybrid_ft.kernels.short_conv.gpu import launch

    leaves, up, cu_seqlens = case([0, 3, 20], D)
    x, weight, tail, dy, d_final = (t.bfloat16() for t in (*leaves, *up))

    def call() -> None:
        for bias in (None, weight[:, 0]):
            launch.forward_op(x, weight, bias, cu_seqlens, tail, True)
            launch.backward_op(dy, d_final, x, weight, bias, cu_seqlens, tail)
        launch.step_op(x[:2], tail, weight)

    assert_compiles(launch, call, arch)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.kernels
@pytest.mark.parametrize("W", [3, 7])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled_without_silu(assert_compiles, arch: int, W: int) -> None:
    """At the width of LFM2 1.2B."""
    from hybrid_ft.kernels.short_conv.gpu import launch

    leaves, up, cu_seqlens = case([0, 3, 20], 2048, W)
    x, weight, tail, dy, d_final = (t.bfloat16() for t in (*leaves, *up))

    def call() -> None:
        launch.forward_op(x, weight, None, cu_seqlens, tail, True, False)
        launch.backward_op(dy, d_final, x, weight, None, cu_seqlens, tail, False)
        launch.step_op(x[:2], tail, weight)

    assert_compiles(launch, call, arch)
