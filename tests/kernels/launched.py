"""Triton as on a machine with a GPU, on one without: it finds out what its arguments are and compiles; and for an
H100 it launches, into a libcuda of ours (libcuda.c), which looks at what arrives and runs nothing. The tensors
lie on the CPU.

Launching needs a C compiler, as it does anywhere.
"""

import ctypes
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import driver as nvidia

ARCH = 90
# of PTX; an address is an unsigned long
C_TYPES = {"u64": ctypes.c_uint64, "u32": ctypes.c_int32, "f32": ctypes.c_float}


class Config(ctypes.Structure):
    """How a CUlaunchConfig begins."""

    _fields_ = [(name, ctypes.c_uint) for name in ("x", "y", "z", "threads", "block_y", "block_z", "shared")]


class Launch(NamedTuple):
    """``arrived``: the value of every parameter that the compiled kernel has; ``given``: of every argument that the
    call left to run time, a tensor's being its address, and of the two addresses of scratch memory that Triton adds."""

    kernel: Any
    compiled: Any
    config: Config
    arrived: list[int | float]
    given: list[int | float]


class Target:
    """A driver that Triton can compile for, and no more. A kernel keeps what it has learnt of a
    device by its number."""

    def __init__(self, arch: int) -> None:
        self.get_current_device = lambda: arch
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", arch, 32)


class Driver(nvidia.CudaDriver):
    """One that it can launch on as well."""

    def __init__(self) -> None:
        super().__init__()
        vars(self).update(vars(Target(ARCH)))


def compile_for(arch: int, kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A kernel as it is compiled for an architecture when it is launched so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.runtime.driver, "_active", Target(arch))
        return kernel.warmup(*args, grid=(1,), **options)


@contextmanager
def no_gpu(folder: Path) -> Iterator[list[Launch]]:
    """Every launch within. Compiled kernels and the libraries go to ``folder``."""
    libcuda = build(folder / "libcuda.so.1")
    launches: list[Launch] = []
    types: list[Any] = []
    last: list[Any] = []

    @ctypes.CFUNCTYPE(None, ctypes.POINTER(Config), ctypes.POINTER(ctypes.c_void_p))
    def arrive(config: Any, parameters: Any) -> None:
        values = [type.from_address(parameters[i]).value for i, type in enumerate(types)]
        last[:] = [Config.from_buffer_copy(config.contents), values]

    original = triton.JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = original(self, *args, grid=grid, warmup=True, **options)
        types[:] = parameter_types(compiled.asm["ptx"])
        last.clear()
        original(self, *args, grid=grid, warmup=False, **options)
        launches.append(Launch(self, compiled, *last, [*at_run_time(self, args, options), 0, 0]))
        return compiled

    libcuda.on_launch(arrive)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_LIBCUDA_PATH", str(folder))
        patch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        patch.setattr(triton.JITFunction, "run", run)
        for found in (nvidia.libcuda_dirs, nvidia.library_dirs):
            found.cache_clear()
        patch.setattr(triton.runtime.driver, "_active", Driver())
        yield launches


def build(library: Path) -> ctypes.CDLL:
    """For all who load a library of that name after this."""
    include = Path(nvidia.__file__).parent / "include"
    source = Path(__file__).with_name("libcuda.c")
    options = ["-shared", "-fPIC", f"-Wl,-soname,{library.name}", f"-I{include}"]
    subprocess.run(["cc", *options, source, "-o", library], check=True)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def parameter_types(ptx: str) -> list[Any]:
    header = ptx[ptx.index(".entry") : ptx.index(")", ptx.index(".entry"))]
    return [C_TYPES[name] for name in re.findall(r"\.param \.(\w+)", header)]


def at_run_time(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Iterator[int | float]:
    for parameter, value in zip(kernel.params, chain(args, (options[p.name] for p in kernel.params[len(args) :]))):
        if not parameter.is_constexpr:
            yield from flat(value, compiled_in=() if parameter.do_not_specialize else (1,))


def flat(value: Any, compiled_in: tuple[int, ...]) -> Iterator[int | float]:
    if isinstance(value, tuple):
        for member in value:
            yield from flat(member, (1,))
    elif isinstance(value, torch.Tensor):
        yield value.data_ptr()
    elif isinstance(value, float):
        yield ctypes.c_float(value).value
    elif isinstance(value, int) and value not in compiled_in:
        yield value
