"""Segments that are cut into pieces, in Triton's interpreter and in float32; which are, and what is counted once."""

from collections.abc import Callable

import pytest
import torch
from delta_rule_interpreted import assert_right, rule
from interpreting import inside
from torch import Tensor

from hybrid_ft.kernels.gated_delta_rule.self_test import case

pytest.importorskip("triton")


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
