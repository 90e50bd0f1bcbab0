"""What the tests of the layer's Triton kernels share. The interpreter must be chosen before triton is imported, so
``test_interpreter.py`` starts a process for them in which TRITON_INTERPRET is set; elsewhere they need a GPU."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parent))  # pytest imports a test file by its path, and so not its neighbours
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run kernels are tests of a GPU wherever they are not interpreted."""
    for item in items:
        if not INTERPRETED and item.path.name == "test_triton.py" and "device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not measured"))


@pytest.fixture(params=[torch.float32] if INTERPRETED else [torch.float32, torch.bfloat16, torch.float16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The interpreter's bfloat16 is wrong."""
    return request.param


@pytest.fixture
def device() -> str:
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """New memory is NaN throughout."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def assert_operators() -> Callable[..., None]:
    """Custom operators' fake versions have the true shapes and dtypes, and what calls them compiles whole."""

    def check(forward: Any, backward: Any, call: tuple, back_call: tuple) -> None:
        torch.library.opcheck(forward, call)
        torch.library.opcheck(backward, back_call)
        leaves = [x for x in call if isinstance(x, Tensor) and x.requires_grad]

        def layer(*xs: Tensor) -> Tensor:
            given = iter(xs)
            y = forward(*(next(given) if isinstance(x, Tensor) and x.requires_grad else x for x in call))
            return sum(i * x.square().sum() for i, x in enumerate([y] if isinstance(y, Tensor) else y, start=1))

        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        eager, whole = (torch.autograd.grad(f(*leaves), leaves) for f in (layer, compiled))
        assert all(torch.equal(a, b) for a, b in zip(eager, whole))

    return check


def run(op: Callable[..., Any], leaves: list[Tensor | None], up: list[Tensor]) -> list[Tensor]:
    """All outputs, and the gradients of all leaves."""
    leaves = [x if x is None else x.detach().requires_grad_() for x in leaves]
    outputs = op(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else [x for x in outputs if x is not None]
    assert [x.shape for x in outputs] == [dx.shape for dx in up]
    wanted = [x for x in leaves if x is not None]
    grads = torch.autograd.grad(
        outputs, wanted, [dx.to(x.dtype) for x, dx in zip(outputs, up)], allow_unused=True, materialize_grads=True
    )
    return [x.detach() for x in (*outputs, *grads)]


@pytest.fixture
def assert_as_good(nan_memory: None, dtype: torch.dtype, device: str) -> Callable[..., list[Tensor]]:
    """The op's error is at most twice the reference's own in the same dtype, both against float64, in relative L2.

    ``leaves`` and ``up`` are float64, the gradients of all outputs the latter. Where the reference happens to be all but
    exact, one rounding is allowed, and for a weight's gradient those of one float32 sum: the interpreter adds row by
    row. Twice the same: bit for bit. Returns the results.
    """

    def check(op: Callable[..., Any], reference: Callable[..., Any], leaves: list, up: list[Tensor]) -> list[Tensor]:
        leaves, up = ([x if x is None else x.to(dtype) for x in xs] for xs in (leaves, up))
        true = run(reference, [x if x is None else x.double() for x in leaves], [x.double() for x in up])
        own = run(reference, leaves, up)
        there = [x if x is None else x.to(device) for x in leaves], [x.to(device) for x in up]
        got, again = run(op, *there), run(op, *there)
        assert len(got) == len(true)
        for i, (x, y, r, t) in enumerate(zip(got, again, own, true)):
            assert x.dtype == r.dtype and x.shape == r.shape, i
            assert torch.equal(x, y), i
            terms = leaves[0].numel() / max(1, x.numel())
            rounding = max(torch.finfo(dtype).eps, terms**0.5 * 2**-24) * float(t.norm())
            error, limit = float((x.cpu().double() - t).norm()), max(2 * float((r.double() - t).norm()), rounding)
            assert error <= limit, f"result {i} is off by {error}, more than {limit}"
        return got

    return check


class Recorder:
    """Stands in for a kernel: keeps what it is launched with, the last time and ``before``."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launch, self.before = kernel, None, None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def record(*args: Any, **options: Any) -> None:
            self.before, self.launch = self.launch, (args, options)

        return record


class Built(NamedTuple):
    """Bytes per thread that did not fit into the registers, bytes of shared memory, PTX; programs that a multiprocessor
    of Hopper holds at once."""

    spilled: int
    shared: int
    ptx: str
    programs: int


@pytest.fixture
def record() -> Callable[[Any, Callable[[], object]], dict[str, Recorder]]:
    """Every kernel of a module with what ``call`` launches it with; nothing is launched."""

    def launches(module: Any, call: Callable[[], object]) -> dict[str, Recorder]:
        recorders = {name: Recorder(x) for name, x in vars(module).items() if name.endswith("_kernel")}
        with pytest.MonkeyPatch.context() as patched:
            for name, recorder in recorders.items():
                patched.setattr(module, name, recorder)
            call()
        return recorders

    return launches


@pytest.fixture
def build() -> Callable[[Recorder, int], Built]:
    """A recorded kernel as Triton compiles it for an architecture when it is launched."""

    def compiled(recorder: Recorder, arch: int) -> Built:
        from kernel_counts import counts
        from launched import compile_for

        assert recorder.launch is not None
        args, options = recorder.launch
        built = compile_for(arch, recorder.kernel, args, options)
        found = counts(built)
        return Built(found.spilled, found.shared, built.asm["ptx"], found.programs)

    return compiled


@pytest.fixture
def assert_compiles(record, build) -> Callable[..., None]:
    """Every kernel that ``call`` launches from a module, compiled for an architecture as it is launched: nothing spills."""

    def check(module: Any, call: Callable[[], object], arch: int) -> None:
        recorders = record(module, call)
        assert recorders
        for name, recorder in recorders.items():
            assert build(recorder, arch).spilled == 0, name

    return check
