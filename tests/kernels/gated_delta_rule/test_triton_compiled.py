"""The Triton kernels compiled ahead of time, without a GPU, as they are launched: what became of registers and products.

Nothing may spill, the passes over the chunks must use Hopper's warp-group products alone, and a program must fit into
the shared memory. A change that adds a spill fails here.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

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


class Built(NamedTuple):
    spilled: int
    shared: int
    ptx: str


class Recorder:
    """Stands in for a kernel: keeps what it is launched with."""

    def __init__(self, kernel: Any) -> None:
        self.kernel, self.launch = kernel, None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def record(*args: Any, **options: Any) -> None:
            self.launch = args, options

        return record


KERNELS = ["weights_kernel", "inverse_kernel", "forward_kernel", "backward_kernel", "query_kernel", "key_kernel"]
KERNELS += ["summary_kernel", "join_kernel", "summary_backward_kernel"]


def launches(
    monkeypatch: pytest.MonkeyPatch, arch: int, dims: tuple[int, int], dtype: torch.dtype
) -> dict[str, Recorder]:
    """Every kernel's arguments, by running the whole op, cut into pieces, with nothing launched."""
    from hybrid_ft.kernels.gated_delta_rule.triton import call, launch, settings

    recorders = {name: Recorder(getattr(launch, name)) for name in KERNELS}
    for name, recorder in recorders.items():
        monkeypatch.setattr(launch, name, recorder)
    monkeypatch.setattr(launch, "settings_for", lambda x: settings.settings(arch, x.itemsize))
    monkeypatch.setattr(call, "SHORTEST", 1)
    T, H = 128, 2
    q, k, v = (torch.zeros(1, T, H, size, dtype=dtype) for size in (dims[0], *dims))
    g = beta = torch.zeros(1, T, H)
    state = torch.zeros(2, H, *dims)
    inputs = call.Inputs(q, k, v, g, beta, torch.tensor([0, 50, T]), state, 0.1, True)
    kept = launch.run_forward(inputs, False).kept
    launch.run_backward(inputs._replace(g=None, beta=None), kept, v, state)
    return recorders


def build(recorder: Recorder, arch: int, folder: Path) -> Built:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assert recorder.launch is not None
    args, options = recorder.launch
    warps = options.pop("num_warps")
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(recorder.kernel.arg_names):
        value = args[i] if i < len(args) else options[name]
        signature[name] = describe(value, (i,), name, constants, attributes)
    source = ASTSource(fn=recorder.kernel, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps, "enable_fp_fusion": True}
    )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(built.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True).stdout
    stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("STACK", "LOCAL"))
    return Built(stack + local, built.metadata.shared, built.asm["ptx"])


TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}


def describe(value: Any, place: tuple[int, ...], name: str, constants: dict, attributes: dict) -> Any:
    """An argument's type, as a launch would find it; integers from 16 up are taken for multiples of 16 when they are."""
    if isinstance(value, tuple):
        return type(value)(*(describe(x, (*place, i), "", constants, attributes) for i, x in enumerate(value)))
    if isinstance(value, torch.Tensor):
        attributes[place] = [["tt.divisibility", 16]]
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if name in ("T", "lanes"):  # not specialised
        return "i32"
    if type(value) is int and not name.isupper():
        if value % 16 == 0:
            attributes[place] = [["tt.divisibility", 16]]
        return "i32"
    constants[place] = getattr(value, "value", value)
    return "constexpr"


@pytest.mark.parametrize("dims", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled(
    dtype: torch.dtype,
    arch: int,
    kernel: str,
    dims: tuple[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build(launches(monkeypatch, arch, dims, dtype)[kernel], arch, tmp_path)
    assert built.shared <= SHARED[arch] * 1024
    scans = {"forward_kernel", "backward_kernel", "summary_kernel", "summary_backward_kernel"}
    if arch == 90 and kernel in scans:
        assert "wgmma.mma_async" in built.ptx
        assert "mma.sync" not in built.ptx.replace("wgmma.mma_async.sync", "")
    if arch == 100 and kernel in scans:
        assert "tcgen05.mma" in built.ptx
    assert built.spilled == 0


def test_versions_that_are_wrong_are_refused() -> None:
    from hybrid_ft.kernels.gated_delta_rule.triton.settings import refuse

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
