"""Token log-probabilities as on a GPU, in the interpreter in float32 or on a GPU, and compiled ahead of time."""

import os

import pytest
import torch
from torch import Tensor

from hybrid_ft.kernels.token_log_probs import token_log_probs_reference

# Before the first matrix product: with deterministic algorithms, which fill new memory with NaN, torch asks for it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
BLOCK = 64


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Chunks and blocks that small cases have several of."""
    from hybrid_ft.kernels.token_log_probs.gpu import launch

    if "device" in request.fixturenames:
        monkeypatch.setattr(launch, "ROWS", 5)
        monkeypatch.setattr(launch, "FORWARD_BLOCK", BLOCK)
        monkeypatch.setattr(launch, "BACKWARD_BLOCK", BLOCK)


def rule(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from hybrid_ft.kernels.token_log_probs.gpu.launch import triton_token_log_probs

    return triton_token_log_probs(hidden, weight, targets.to(hidden.device))


def rounded(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """By definition, from logits in the inputs' dtype as a head gives them."""
    logits = hidden @ weight.T
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def inputs(tokens: int, words: int, size: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(tokens + words)
    hidden, weight = (torch.randn(n, size, generator=gen, dtype=torch.float64) for n in (tokens, words))
    targets = torch.randint(words, (tokens,), generator=gen)
    if tokens:
        targets[0], targets[-1] = words - 1, 0
    return hidden * scale, weight, targets, torch.randn(tokens, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(
    "shape", [(1, 1, 3), (4, 63, 8), (5, BLOCK, 8), (6, BLOCK + 1, 100), (13, 3 * BLOCK - 1, 16), (0, 9, 4)], ids=str
)
def test_shapes(assert_as_good, shape: tuple[int, ...], scale: float) -> None:
    hidden, weight, targets, up = inputs(*shape, scale)
    assert torch.equal(rounded(hidden, weight, targets), token_log_probs_reference(hidden, weight, targets)[0])
    assert_as_good(lambda h, w: rule(h, w, targets)[0], lambda h, w: rounded(h, w, targets), [hidden, weight], [up])


@pytest.mark.quick
@pytest.mark.parametrize("scale", [1.0, 8.0], ids=["flat", "peaked"])
def test_half_precision(device: str, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """In float16, which the interpreter has right: results and gradients as good as those of a head's rounded logits,
    weight's too, of which each token, here a chunk, adds a part."""
    from hybrid_ft.kernels.token_log_probs.gpu import launch

    monkeypatch.setattr(launch, "ROWS", 1)
    hidden, weight, targets, up = inputs(250, BLOCK + 1, 16, scale)
    hidden, weight = hidden.half(), weight.half()
    results = []
    for op, where, dtype in ((rule, device, torch.half), (rounded, "cpu", torch.half), (rounded, "cpu", torch.double)):
        leaves = [x.to(where, dtype).requires_grad_() for x in (hidden, weight)]
        log_probs = op(*leaves, targets)
        log_probs = log_probs if isinstance(log_probs, Tensor) else log_probs[0]
        results.append([log_probs, *torch.autograd.grad(log_probs, leaves, up.to(log_probs))])
    for got, own, true in zip(*results):
        assert got.dtype == own.dtype
        error, limit = (float((x.cpu().double() - true).detach().norm()) for x in (got, own))
        assert error <= 2 * limit


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_entropy_and_the_likeliest(device: str, dtype: torch.dtype, scale: float) -> None:
    hidden, weight, targets, _ = inputs(13, 3 * BLOCK - 1, 16, scale)
    hidden, weight = hidden.to(device, dtype), weight.to(device, dtype)
    logits = (hidden @ weight.T).double().cpu()
    targets[::2] = logits.argmax(-1)[::2]
    log_p = logits.log_softmax(-1)
    log_probs, entropy, is_top = rule(hidden.requires_grad_(), weight, targets)
    assert log_probs.requires_grad and not entropy.requires_grad
    assert is_top.tolist() == (logits.gather(-1, targets[:, None]).squeeze(-1) == logits.amax(-1)).tolist()
    torch.testing.assert_close(entropy.cpu().double(), -(log_p.exp() * log_p).sum(-1), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient(device: str, frozen: str) -> None:
    hidden, weight, targets, up = inputs(7, 100, 8)
    leaves = {"hidden": hidden.to(device, torch.float32), "weight": weight.to(device, torch.float32)}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name != frozen)
    rule(**leaves, targets=targets)[0].backward(up.to(device, torch.float32))
    (other,) = set(leaves) - {frozen}
    assert leaves[frozen].grad is None and leaves[other].grad.abs().sum() > 0


def test_a_wider_weight(device: str) -> None:
    """The products are in its dtype, the gradients in each one's own."""
    hidden, weight, targets, up = inputs(7, 100, 8)
    leaves = [hidden.to(device, torch.float16).requires_grad_(), weight.to(device, torch.float32).requires_grad_()]
    log_probs = rule(*leaves, targets)[0]
    got = [log_probs, *torch.autograd.grad(log_probs, leaves, up.to(device, torch.float32))]
    wide = [leaf.detach().double().cpu().requires_grad_() for leaf in leaves]
    true = rounded(*wide, targets)
    for x, t, dtype in zip(
        got, [true, *torch.autograd.grad(true, wide, up)], [torch.float32, torch.float16, torch.float32]
    ):
        assert x.dtype == dtype
        torch.testing.assert_close(x.cpu().double(), t, rtol=2e-3, atol=1e-4 if dtype == torch.float16 else 1e-6)


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_a_number_that_is_none_is_passed_on(device: str) -> None:
    hidden, weight, targets, _ = inputs(8, 150, 8)
    hidden[3, 2] = torch.nan
    log_probs, entropy, is_top = rule(hidden.to(device, torch.float32), weight.to(device, torch.float32), targets)
    assert log_probs.isnan().nonzero().flatten().tolist() == entropy.isnan().nonzero().flatten().tolist() == [3]
    assert not is_top[3]


def test_a_target_that_is_no_word_gives_no_number(device: str) -> None:
    hidden, weight, targets, _ = inputs(8, 150, 8)
    targets[1], targets[4] = -100, 150
    log_probs = rule(hidden.to(device, torch.float32), weight.to(device, torch.float32), targets)[0]
    assert log_probs.isnan().nonzero().flatten().tolist() == [1, 4]


def test_by_strides(device: str) -> None:
    """A row of a batch without its last token, an expanded gradient, every other target."""
    hidden, weight, targets, _ = inputs(12, 100, 8)
    h, w = hidden.to(device, torch.float32), weight.to(device, torch.float32)
    wide = torch.cat([h, h * torch.nan], 1)[:, :8].requires_grad_()
    own = h.clone().requires_grad_()
    every_other = targets.repeat_interleave(2)[::2]
    got, true = rule(wide, w, every_other)[0], rule(own, w, targets)[0]
    assert torch.equal(got, true)
    assert torch.equal(torch.autograd.grad(got.sum(), wide)[0], torch.autograd.grad(true.sum(), own)[0])


def test_what_is_kept_for_backward(device: str) -> None:
    """The inputs and numbers of each token, no logits."""
    hidden, weight, targets, _ = inputs(7, 1000, 8)
    h, w = (x.to(device, torch.float32).requires_grad_() for x in (hidden, weight))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        rule(h, w, targets)
    assert sorted(kept) == sorted([h.numel(), w.numel(), 7, 7, 7])


def test_operators_are_what_they_say(device: str) -> None:
    from hybrid_ft.kernels.token_log_probs.gpu.launch import backward_op, forward_op

    hidden, weight, targets, up = inputs(7, 100, 8)
    h, w, up = (x.to(device, torch.float32) for x in (hidden, weight, up))
    leaves = [x.clone().requires_grad_() for x in (h, w)]
    targets = targets.to(device)
    torch.library.opcheck(forward_op, (*leaves, targets))
    *_, highest, total = forward_op(h, w, targets)
    for wanted in ((True, True), (True, False), (False, True)):
        for given in (h, h.half()):
            torch.library.opcheck(backward_op, (up, given, w, targets, highest, total, *wanted))

    def loss(h: Tensor, w: Tensor) -> Tensor:
        return forward_op(h, w, targets)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager, whole = (torch.autograd.grad(f(*leaves), leaves) for f in (loss, compiled))
    assert all(torch.equal(a, b) for a, b in zip(eager, whole))


def test_what_the_kernels_cannot_take(device: str) -> None:
    hidden, weight, targets, _ = inputs(3, 9, 4)
    with pytest.raises(ValueError, match="hidden: got torch.float64; on a GPU it must be float32, bfloat16 or float16"):
        rule(hidden.to(device), weight.to(device), targets)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured")
def test_a_gpu_takes_this_path(device: str) -> None:
    from hybrid_ft.kernels.token_log_probs import token_log_probs

    hidden, weight, targets, _ = inputs(13, 100, 8)
    given = hidden.to(device, torch.bfloat16), weight.to(device, torch.bfloat16), targets.to(device)
    assert all(torch.equal(x, y) for x, y in zip(token_log_probs(*given), rule(*given)))


@compiles
@pytest.mark.kernels
@pytest.mark.parametrize("V", [100352, 50257])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_compiled(assert_compiles, arch: int, V: int) -> None:
    from hybrid_ft.kernels.token_log_probs.gpu import launch

    hidden, weight = torch.zeros(3, 8, dtype=torch.bfloat16), torch.zeros(V, 8, dtype=torch.bfloat16)
    targets, numbers = torch.zeros(3, dtype=torch.long), torch.zeros(3)

    def call() -> None:
        launch.forward_op(hidden, weight, targets)
        launch.backward_op(numbers, hidden, weight, targets, numbers, numbers, True, False)

    assert_compiles(launch, call, arch)
