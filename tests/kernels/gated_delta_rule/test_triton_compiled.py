"""The Triton kernels compiled ahead of time, without a GPU, as they are launched: what became
of registers and products.

Nothing may spill but on Hopper, the passes over the chunks must use its warp-group products alone, a program must fit
into the shared memory, and a multiprocessor of Hopper must hold as many programs as PROGRAMS says: with one less,
nothing hides the loads of the others. A change that adds a spill or takes a program away fails here.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing"),
]

SIZES = [(96, 192), (128, 128)]
ARCHS = [80, 90, 100]
# KiB a program can have. Ampere's settings are also those of sm_86, sm_89 and sm_120, which have less than sm_80.
SHARED = {80: 99, 90: 227, 100: 227}
KERNELS = ["weights_kernel", "forward_kernel", "backward_kernel", "query_kernel", "key_kernel"]
KERNELS += ["summary_kernel", "join_kernel", "summary_backward_kernel"]
# That a multiprocessor of Hopper holds at once.
PROGRAMS = {"weights_kernel": 4, "forward_kernel": 2, "backward_kernel": 2, "query_kernel": 2}
PROGRAMS |= {"key_kernel": 2, "summary_kernel": 2, "summary_backward_kernel": 2, "join_kernel": 2}
# forward_kernel where there are fewer programs than multiprocessors
ALONE = "forward_kernel, alone"
# weights_kernel where the gates and the inverse are there
AGAIN = "weights_kernel, backward"
PROGRAMS[AGAIN] = 4
# Bytes per thread that may spill on Hopper, where they buy programs; elsewhere there are none.
SPILLED_FOR_PROGRAMS = 96


@pytest.fixture
def launch_of(record: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A kernel as it is launched by the whole op, cut into pieces."""
    from hybrid_ft.kernels.gated_delta_rule.gpu import call, launch, settings

    def kernel(name: str, arch: int, dims: tuple[int, int], dtype: torch.dtype, correct: bool = True) -> Any:
        monkeypatch.setattr(launch, "settings_for", lambda x: settings.settings(arch))
        monkeypatch.setattr(call, "SHORTEST", 1)
        monkeypatch.setattr(call.Call, "alone", lambda self, programs: name == ALONE)
        T, H = 128, 2
        q, k, v = (torch.zeros(1, T, H, size, dtype=dtype) for size in (dims[0], *dims))
        g = beta = torch.zeros(1, T, H)
        state = torch.zeros(2, H, *dims)
        inputs = call.Inputs(q, k, v, g, beta, torch.tensor([0, 50, T]), state, 0.1, correct, correct)

        def both() -> None:
            kept = launch.run_forward(inputs, False).kept
            launch.run_backward(inputs._replace(g=None, beta=None), kept, v, state)

        recorders = record(launch, both)
        launched = sorted(name for name, recorder in recorders.items() if recorder.launch)
        assert launched == sorted(KERNELS)
        if name == "weights_kernel":
            recorders[name].launch = recorders[name].before
        return recorders[name.partition(",")[0]]

    return kernel


@pytest.mark.parametrize("dims", SIZES, ids=str)
@pytest.mark.parametrize("kernel", [*KERNELS, ALONE, AGAIN])
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled(
    dtype: torch.dtype,
    arch: int,
    kernel: str,
    dims: tuple[int, int],
    launch_of: Callable[..., Any],
    build: Callable[..., Any],
) -> None:
    built = build(launch_of(kernel, arch, dims, dtype), arch)
    assert built.shared <= SHARED[arch] * 1024
    scans = {"forward_kernel", ALONE, "backward_kernel", "summary_kernel", "summary_backward_kernel"}
    if arch == 90 and kernel in scans:
        assert "wgmma.mma_async" in built.ptx
        assert "mma.sync" not in built.ptx.replace("wgmma.mma_async.sync", "")
    if arch == 100 and kernel in scans:
        assert "tcgen05.mma" in built.ptx
    assert built.spilled <= (SPILLED_FOR_PROGRAMS if arch == 90 else 0)
    assert arch != 90 or built.programs >= PROGRAMS.get(kernel, 1)


@pytest.mark.parametrize("kernel", [*KERNELS, AGAIN])
def test_compiled_for_mamba2(kernel: str, launch_of: Callable[..., Any], build: Callable[..., Any]) -> None:
    """States of 128 by 64, as Granite 4 H, Falcon-H1 and Nemotron-H have them; no inverse."""
    built = build(launch_of(kernel, 90, (128, 64), torch.bfloat16, correct=False), 90)
    assert built.spilled <= SPILLED_FOR_PROGRAMS and built.programs >= PROGRAMS[kernel]


@pytest.mark.parametrize(("segments", "stages"), [(1, 3), (2, 2)])
def test_few_programs_have_memory_for_more_stages(
    segments: int, stages: int, record: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 heads of three tiles are 90 programs for 132 multiprocessors, of two sequences 180."""
    from hybrid_ft.kernels.gated_delta_rule.gpu import call, launch, settings
    from hybrid_ft.kernels.gated_delta_rule.gpu.tiles import Scan

    monkeypatch.setattr(launch, "settings_for", lambda x: settings.settings(90))
    q, k, v = (torch.zeros(segments, 64, 30, size, dtype=torch.bfloat16) for size in (96, 96, 192))
    g = beta = torch.zeros(segments, 64, 30)
    inputs = call.Inputs(q, k, v, g, beta, None, None, 0.1, True)
    recorders = record(launch, lambda: launch.run_forward(inputs, False))
    args, _ = recorders["forward_kernel"].launch
    assert [x.STAGES.value for x in args if isinstance(x, Scan)] == [stages]


def test_versions_that_are_wrong_are_refused() -> None:
    from hybrid_ft.kernels.gated_delta_rule.gpu.settings import refuse

    refuse(90, "3.6.0")
    refuse(103, "3.8.0")
    for arch, version, line in (
        (90, "3.5.1", "triton 3.5.1 is older than 3.6.*pip install"),
        (103, "3.7.1+git", r"triton 3.7.1\+git on sm_103: .*triton>=3.8"),
        (75, "3.7.1", "sm_75: .*8.0 or newer"),
    ):
        with pytest.raises(RuntimeError, match=line) as raised:
            refuse(arch, version)
        assert "\n" not in str(raised.value)


def test_a_length_compiles_nothing_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever number of tokens, from wherever in a row: a kernel would be compiled in the middle of training."""
    from launched import Target

    from hybrid_ft.kernels.gated_delta_rule.gpu import call, launch, settings

    monkeypatch.setattr(launch, "settings_for", lambda x: settings.settings(90))
    monkeypatch.setattr(triton.runtime.driver, "_active", Target(90))
    compiled: dict[str, set[str]] = {}

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        *_, binder = self.device_caches[90]
        _, specialization, _ = binder(*args, debug=False, **options)
        compiled.setdefault(self.__name__, set()).add(str(specialization))

    monkeypatch.setattr(triton.JITFunction, "run", run)
    H, K, V = 30, 96, 192
    row = [torch.zeros(1, 400, H, size, dtype=torch.bfloat16) for size in (K, K, V)]
    rates = [torch.zeros(1, 400, H) for _ in range(2)]
    for first, tokens in ((0, 64), (0, 63), (0, 100), (0, 1), (1, 64), (2, 77), (3, 130), (5, 101), (8, 200)):
        q, k, v, g, beta = (x[:, first : first + tokens] for x in (*row, *rates))
        # as it comes from a split of a row, and by itself
        for own in (lambda x: x, lambda x: torch.zeros(x.shape)):
            inputs = call.Inputs(q, k, v, own(g), own(beta), torch.tensor([0, 1, tokens]), None, 0.1, True)
            kept = launch.run_forward(inputs, False).kept
            launch.run_backward(inputs._replace(g=None, beta=None), kept, v, None)
    assert {"weights_kernel", "forward_kernel", "backward_kernel", "key_kernel"} <= set(compiled)
    # with the gates and, in backward, from them
    assert {name: len(kinds) for name, kinds in compiled.items()} == dict.fromkeys(compiled, 1) | {"weights_kernel": 2}
