"""Records launches while they run, so that they can be compiled beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget

HOPPER = 90


class Launch(NamedTuple):
    """A kernel with everything that it is launched with."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]
    grid: Any

    @property
    def name(self) -> str:
        return self.kernel.__name__

    def __call__(self) -> Any:
        return self.kernel[self.grid](*self.args, **self.options)

    def key(self) -> tuple[Any, ...]:
        """Launches with the same one need one compiled kernel."""
        given = [*self.args, *(self.options[name] for name in sorted(self.options))]
        return self.kernel.__module__, self.name, tuple(sorted(self.options)), tuple(_kind(x) for x in given)

    def lightened(self) -> Launch:
        """With tensors of a few numbers in place of its own, of the same dtype and alignment: what a compiler asks
        for."""
        args, options = _light(self.args), {name: _light(x) for name, x in self.options.items()}
        return self._replace(args=args, options=options)


def _light(x: Any) -> Any:
    if isinstance(x, tuple):
        members = [_light(member) for member in x]
        return type(x)(*members) if hasattr(x, "_fields") else tuple(members)
    if isinstance(x, torch.Tensor):
        return torch.empty(64, dtype=x.dtype)[0 if x.data_ptr() % 16 == 0 else 1 :]
    return x


def _kind(x: Any) -> Any:
    if isinstance(x, tuple):
        return tuple(_kind(member) for member in x)
    if isinstance(x, torch.Tensor):
        return x.dtype, x.data_ptr() % 16 == 0
    return repr(x)


@contextmanager
def recorded(run: bool, light: bool = False) -> Iterator[list[Launch]]:
    """Every launch within; ``run``: it is launched as well; ``light``: lightened at once, so that no memory is held."""
    launches: list[Launch] = []
    original = triton.JITFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool = False, **options: Any) -> Any:
        launch = Launch(self, args, options, grid)
        launches.append(launch.lightened() if light else launch)
        return original(self, *args, grid=grid, warmup=warmup, **options) if run else None

    def every_config(self: Any, *args: Any, **options: Any) -> None:
        for config in self.configs:
            self.fn.run(*args, **options, **config.all_kwargs())

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(triton.JITFunction, "run", record))
        if not run:  # what tunes itself would time its configurations; each is wanted
            stack.enter_context(mock.patch.object(triton.runtime.autotuner.Autotuner, "run", every_config))
        yield launches


class Target:
    """A driver that Triton can compile for, and no more."""

    def __init__(self, arch: int) -> None:
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_current_target = lambda: GPUTarget("cuda", arch, 32)
        self.get_device_interface = lambda: torch.cuda
        self.get_benchmarker = lambda: None


@contextmanager
def pretending(arch: int = HOPPER) -> Iterator[None]:
    """Tensors on the CPU pass for a GPU's, and Triton compiles for it. CUDA is left alone, so that
    a process may fork."""
    card = SimpleNamespace(name="NVIDIA H200", major=arch // 10, minor=arch % 10, multi_processor_count=132)
    card.total_memory = 140 << 30
    answers = {
        "is_available": lambda: True,
        "device": lambda device: nullcontext(),
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (card.major, card.minor),
        "get_device_properties": lambda device=None: card,
        "get_device_name": lambda device=None: card.name,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.Tensor, "is_cuda", property(lambda x: True), create=True))
        stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", Target(arch)))
        for name, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        yield
