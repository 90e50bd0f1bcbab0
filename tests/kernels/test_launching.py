"""The kernel that a launch finds by itself is the one that Triton would have found, for arguments of every kind."""

import ctypes
import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")

TOKENS = 96


class Launch(NamedTuple):
    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self) -> None:
        from hybrid_ft.kernels.launching import launch

        launch(self.kernel, 7, *self.args, **self.options)


class Compiled:
    """Stands in for a compiled kernel; ``calls`` are what it was run with."""

    def __init__(self) -> None:
        self.function, self.packed_metadata, self.calls = object(), object(), []

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *given: Any) -> None:
        # without the hooks, and what is made for them
        self.calls.append(given[:6] + given[9:])


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[Launch], list[Compiled]]:
    """What Triton finds for a launch, and what two launches found before that; nothing is compiled."""
    from launched import Target

    made: list[Compiled] = []

    def compile_nothing(self: Any, key: str, signature: Any, device: Any, *_: Any) -> Compiled:
        made.append(Compiled())
        self.device_caches[device][0][key] = made[-1]
        return made[-1]

    target, device = Target(90), object()
    target.get_current_device = lambda: device
    monkeypatch.setattr(triton.runtime.driver, "_active", target)
    monkeypatch.setattr(triton.JITFunction, "_do_compile", compile_nothing)

    def find(launch: Launch) -> list[Compiled]:
        used = []
        for x in made:  # holds no arguments
            x.calls.clear()
        for call in (launch, launch, lambda: launch.kernel[(7,)](*launch.args, **launch.options)):
            before = [len(x.calls) for x in made]
            call()
            (one,) = [x for x, count in zip(made, [*before, *(len(made) - len(before)) * [0]]) if len(x.calls) > count]
            used.append(one)
        return used

    return find


def gpu_modules() -> list[Any]:
    root = Path(__file__).parents[2] / "kernels"
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in sorted(root.glob("*/gpu/*.py"))]
    return [importlib.import_module(f"hybrid_ft.kernels.{name}") for name in names if not name.endswith("__init__")]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Launch]:
    """One of every kernel that there is."""
    recorded: dict[str, Launch] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        recorded.setdefault(f"{self.__module__}.{self.__name__}", Launch(self, args, options))

    with monkeypatch.context() as patched:
        patched.setattr(triton.JITFunction, "run", run)
        for module in gpu_modules():
            for name, call in CALLS.items():
                if module.__name__.endswith(name):
                    call(module, patched)
    wanted = {
        f"{module.__name__}.{name}"
        for module in gpu_modules()
        for name, x in vars(module).items()
        if name.endswith("_kernel") and x.__module__ == module.__name__
    }
    assert set(recorded) == wanted
    return recorded


def half(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def delta_rule(module: Any, patched: pytest.MonkeyPatch) -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu import call

    patched.setattr(call, "SHORTEST", 1)
    rates, state = torch.zeros(1, TOKENS, 2), torch.zeros(2, 2, 96, 192)
    inputs = call.Inputs(
        half(1, TOKENS, 2, 96), half(1, TOKENS, 2, 96), v := half(1, TOKENS, 2, 192), rates, rates,
        torch.tensor([0, 50, TOKENS]), state, 0.1, True,
    )  # fmt: skip
    kept = module.run_forward(inputs, False).kept
    module.run_backward(inputs._replace(g=None, beta=None), kept, v, state)


def short_conv(module: Any, patched: pytest.MonkeyPatch) -> None:
    x, weight, tail, edges = half(TOKENS, 64), half(64, 4), half(1, 3, 64), torch.tensor([0, TOKENS])
    module.forward_op(x, weight, x[0], edges, tail, True)
    module.backward_op(x, tail, x, weight, x[0], edges, tail)
    module.step_op(x[:1], tail, weight)


def rms_norm(module: Any, patched: pytest.MonkeyPatch) -> None:
    x = half(TOKENS, 64)
    module.forward_op(x, x, None, x[0], 1e-6)
    module.backward_op(x, None, x, x[0], 1e-6)


def gated_rms_norm(module: Any, patched: pytest.MonkeyPatch) -> None:
    x = half(TOKENS, 64)
    module.forward_op(x, x, x[0], 1e-6)
    module.backward_op(x, x, x, x[0], 1e-6)


def swiglu(module: Any, patched: pytest.MonkeyPatch) -> None:
    x = half(TOKENS, 64)
    module.forward_op(x, x)
    module.backward_op(x, x, x)


def delta_gates(module: Any, patched: pytest.MonkeyPatch) -> None:
    x = half(TOKENS, 30)
    module.forward_op(x, x, x[0], x[0], True)
    module.backward_op(x.float(), x, x, x, x[0], x[0], True)


def token_log_probs(module: Any, patched: pytest.MonkeyPatch) -> None:
    hidden, weight, numbers = half(TOKENS, 64), half(100, 64), torch.zeros(TOKENS)
    targets = torch.zeros(TOKENS, dtype=torch.int64)
    module.forward_op(hidden, weight, targets)
    module.backward_op(numbers, hidden, weight, targets, numbers, numbers, True, False)


def step(module: Any, patched: pytest.MonkeyPatch) -> None:
    rates = torch.zeros(2, 2)
    module.step_op(half(2, 2, 96), half(2, 2, 96), half(2, 2, 192), rates, rates, torch.zeros(2, 2, 96, 192), 0.1, True)


def delta_step(module: Any, patched: pytest.MonkeyPatch) -> None:
    channels, rates = 2 * 96 * 2 + 2 * 192, half(2, 2)
    tail, state, weight = half(2, 3, channels), torch.zeros(2, 2, 96, 192), half(channels, 4)
    module.step_op(half(2, channels), rates, rates, tail, state, weight, rates[0], rates[0], 2, True)


def adamw(module: Any, patched: pytest.MonkeyPatch) -> None:
    x = half(TOKENS)
    module.update_op(x, torch.zeros(TOKENS, dtype=torch.uint8), x.clone(), x.clone(), x.clone(), 5, [0.1] * 6)


CALLS: dict[str, Callable[[Any, pytest.MonkeyPatch], None]] = {
    "kernels.gated_delta_rule.gpu.launch": delta_rule,
    "kernels.gated_delta_rule.gpu.step_launch": step,
    "kernels.delta_step.gpu.launch": delta_step,
    "kernels.short_conv.gpu.launch": short_conv,
    "kernels.rms_norm.gpu.launch": rms_norm,
    "kernels.gated_rms_norm.gpu.launch": gated_rms_norm,
    "kernels.swiglu.gpu.launch": swiglu,
    "kernels.delta_gates.gpu.launch": delta_gates,
    "kernels.token_log_probs.gpu.launch": token_log_probs,
    "kernels.adamw_bf16.gpu.launch": adamw,
}
NUMBERS = (0, 1, 2, 16, 17, -1, -16, 2**31 - 1, 2**31, 2**31 + 1, -(2**31) - 16, 2**63, 2**63 + 1)


def others(x: Any, constant: bool) -> Iterator[Any]:
    """In place of one argument, of each kind that it may be; in place of a tuple, those with one other member."""
    if isinstance(x, tuple) and isinstance(x[0], triton.language.constexpr):
        yield from (type(x)(*x), x._replace(**{x._fields[0]: triton.language.constexpr(3)}))
    elif isinstance(x, tuple):
        for i, member in enumerate(x):
            for other in others(member, False):
                yield type(x)(*x[:i], other, *x[i + 1 :])
    elif isinstance(x, Tensor):
        memory = torch.zeros(64, dtype=x.dtype)
        aligned = memory[-memory.data_ptr() % 16 // x.element_size() :]
        yield from (aligned, aligned[1:], aligned[8:], aligned.to(torch.float64), torch.nn.Parameter(half(8)), None)
    elif x is None:
        yield from (half(8), half(9)[1:], torch.zeros(8))
    elif isinstance(x, bool):
        yield not x
    elif isinstance(x, int):
        yield from (x + 1, 2 * x) if constant else NUMBERS
    elif isinstance(x, float):
        yield from (0.5, 1.0)


def test_a_launch_finds_what_triton_would(
    launches: dict[str, Launch], found: Callable[[Launch], list[Compiled]]
) -> None:
    counts = {}
    for name, launch in launches.items():
        kernel, args, options = launch
        cases = [launch, launch._replace(options=options | {"num_warps": 2})]
        for i, x in enumerate(args):
            for other in others(x, i in kernel.constexprs):
                cases.append(launch._replace(args=(*args[:i], other, *args[i + 1 :])))
        for key, x in options.items():
            if key in kernel.arg_names:
                cases += [launch._replace(options=options | {key: other}) for other in others(x, True)]
        used = set()
        for case in cases:
            first, again, right = found(case)
            assert first is again is right, (name, case)
            # the second is passed on as Triton does
            assert all(x is y or x == y for x, y in zip(right.calls[-2], right.calls[-1], strict=True)), name
            used.add(right)
        counts[name] = len(used)
    # were all of them the same kernel, nothing would have been seen
    assert min(counts.values()) > 5


def test_two_at_once_are_told_apart(launches: dict[str, Launch], found: Callable[[Launch], list[Compiled]]) -> None:
    """Pairs of arguments that differ: what one says does not hide what the next one says."""
    draw = torch.Generator().manual_seed(0)

    def one_of(x: list[Any]) -> Any:
        return x[int(torch.randint(len(x), (), generator=draw))]

    for name, launch in launches.items():
        for _ in range(60):
            args = list(launch.args)
            for i in torch.randperm(len(args), generator=draw)[:3].tolist():
                args[i] = one_of([args[i], *others(args[i], i in launch.kernel.constexprs)])
            first, again, right = found(launch._replace(args=tuple(args)))
            assert first is again is right, name


def test_an_address_that_is_used_again_is_not_mistaken(
    launches: dict[str, Launch], found: Callable[[Launch], list[Compiled]]
) -> None:
    """Sizes that nobody else holds, where others may have been."""
    launch = next(launch for launch in launches.values() if hasattr(launch.args[-1], "HV"))
    for V in range(16, 512, 16):
        sizes = launch.args[-1]._replace(V=triton.language.constexpr(V))
        first, again, right = found(launch._replace(args=(*launch.args[:-1], sizes)))
        assert first is again is right
        # Triton's table of keys would keep them
        launch.kernel.device_caches[triton.runtime.driver.active.get_current_device()][1].clear()


def test_who_watches_launches_sees_them(
    launches: dict[str, Launch], found: Callable[[Launch], list[Compiled]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A profiler's hooks, a recorder in Triton's place, and a version of Triton that nothing is known of."""
    from hybrid_ft.kernels import launching

    launch = next(iter(launches.values()))
    found(launch)
    original, seen = triton.JITFunction.run, []

    def run(self: Any, *args: Any, **options: Any) -> Any:
        seen.append(self)
        return original(self, *args, **options)

    monkeypatch.setattr(triton.JITFunction, "run", run)
    launch()
    assert seen == [launch.kernel]
    run.__module__ = original.__module__  # as if it were Triton's own
    launch()
    assert len(seen) == 1
    for module, name, value in (
        (launching, "KNOWN", False),
        (triton.knobs.runtime, "launch_enter_hook", print),
        (triton.knobs.runtime, "debug", True),
        (triton.knobs.compilation, "instrumentation_mode", "x"),
        (launch.kernel, "pre_run_hooks", [lambda *_, **__: None]),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, value)
            before = len(seen)
            launch()
            assert len(seen) == before + 1, name


@pytest.mark.kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver, and a GPU: make test-gpu")
@pytest.mark.skipif(shutil.which("cc") is None, reason="Triton launches through C that it compiles; there is no cc")
def test_what_arrives_at_the_driver_is_the_same(
    launches: dict[str, Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through Triton's own launcher, as it is called here and by Triton: plain arguments, and
    named tuples in others."""
    from launched import Config, Driver, build, parameter_types
    from triton.backends.nvidia import driver as nvidia

    from hybrid_ft.kernels import launching

    arrived: list[tuple[bytes, list[Any]]] = []
    types: list[Any] = []

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(Config), ctypes.POINTER(ctypes.c_void_p))
    def arrive(config: Any, parameters: Any) -> None:
        values = [type.from_address(parameters[i]).value for i, type in enumerate(types)]
        arrived.append((bytes(config.contents), values))

    library = build(tmp_path / "libcuda.so.1")
    library.on_launch(arrive)
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path))
    for searched in (nvidia.libcuda_dirs, nvidia.library_dirs):
        searched.cache_clear()
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    for name, launch in launches.items():
        if not name.endswith(("swiglu.gpu.kernels.backward_kernel", "join_kernel")):
            continue
        compiled = launch.kernel[(7,)](*launch.args, **launch.options)
        types[:] = parameter_types(compiled.asm["ptx"])
        launch()
        arrived.clear()
        monkeypatch.setattr(launching, "KNOWN", False)
        launch()
        monkeypatch.setattr(launching, "KNOWN", True)
        with monkeypatch.context() as patched:  # so that Triton is not asked
            patched.setattr(launch.kernel, "run", None)
            launch()
        there, here = arrived
        assert here == there and len(here[1]) > 5, name
