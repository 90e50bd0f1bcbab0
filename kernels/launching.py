"""Launches of Triton kernels that find the compiled kernel by themselves.

Triton asks at every launch what its arguments are like and compares all that was compiled in: of the delta rule's
first launch 35 of 42 microseconds on a core without a GPU, where what is done here takes 15. A key is made that says
all that Triton compiles for: dtype and alignment of a tensor, of a whole number whether it is 1, whether it is
divisible by 16 and how wide it is, what is None, and every value that is compiled in. It says no less than Triton's
own, which tests/kernels/test_launching.py holds, so that a key leads to one kernel. Triton looks up, and compiles,
what has a new one.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import triton
from torch import Tensor
from torch.nn import Parameter

# What a compiled kernel is called with is no interface of Triton's; in these it is this.
VERSIONS = ("3.6", "3.7")
KNOWN = triton.__version__.rsplit(".", 1)[0] in VERSIONS


class Found(NamedTuple):
    """A compiled kernel: how it is called, and the names of arguments that are given by name, in order. ``held`` keeps
    what the key has the addresses of."""

    run: Any
    function: Any
    metadata: Any
    names: tuple[str, ...]
    held: Any


_found: dict[tuple[Any, ...], Found] = {}
_compiled_in: set[type] = set()


class Unknown(Exception):
    """Nothing is known here of such an argument."""


def compiled_in(kind: type) -> type:
    """A named tuple of nothing but numbers that are compiled in, which whoever launches makes once and gives again: it
    counts as itself, whatever it holds."""
    _compiled_in.add(kind)
    return kind


def launch(kernel: Any, programs: int, *args: Any, **options: Any) -> None:
    """``kernel[(programs,)](*args, **options)``. By name only what is compiled in, and Triton's options. A process must
    not change, under Triton, what its kernels have from outside of them."""
    if type(kernel) is not triton.JITFunction or not KNOWN or _watched(kernel):
        kernel[(programs,)](*args, **options)
        return
    driver = triton.runtime.driver.active
    device = driver.get_current_device()
    try:
        key = (id(kernel), device, *describe(args, kernel.constexprs), *options.items())
    except Unknown:
        kernel[(programs,)](*args, **options)
        return
    found = _found.get(key)
    if found is None:
        compiled = kernel.run(*args, grid=(programs,), warmup=False, **options)
        if compiled is not None:
            _found[key] = _entry(kernel, compiled, args, options)
        return
    stream = driver.get_current_stream(device)
    named = (options[name] for name in found.names) if found.names else ()
    found.run(programs, 1, 1, stream, found.function, found.metadata, None, None, None, *args, *named)


def _watched(kernel: Any) -> bool:
    """Someone wants to see launches, or to have kernels compiled otherwise."""
    runtime, compilation = triton.knobs.runtime, triton.knobs.compilation
    return bool(
        triton.JITFunction.run.__module__ != triton.JITFunction.__module__
        or kernel.pre_run_hooks
        or runtime.debug
        or getattr(runtime.launch_enter_hook, "calls", runtime.launch_enter_hook)
        or getattr(runtime.launch_exit_hook, "calls", runtime.launch_exit_hook)
        or getattr(runtime, "add_stages_inspection_hook", None)
        or compilation.instrumentation_mode
    )


def _entry(kernel: Any, compiled: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Found:
    names = tuple(kernel.arg_names[len(args) :])
    by_name = {name for name in kernel.arg_names if name in options}
    assert by_name == set(names) and by_name <= {kernel.arg_names[i] for i in kernel.constexprs}, kernel.__name__
    held = kernel, [x for x in args if type(x) in _compiled_in]
    return Found(compiled.run, compiled.function, compiled.packed_metadata, names, held)


def describe(args: tuple[Any, ...], constexprs: list[int]) -> list[Any]:
    """All that Triton compiles a kernel for, of its arguments; those at ``constexprs``, which are
    the last, by value."""
    first = constexprs[0] if constexprs else len(args)
    assert not constexprs or constexprs[-1] - first < len(constexprs)
    found: list[Any] = []
    _describe(args[:first], found)
    for x in args[first:]:
        found += type(x), x
    return found


def _describe(args: Iterable[Any], found: list[Any]) -> None:
    """Each begins with its kind, which says how much follows."""
    add = found.append
    for x in args:
        kind = type(x)
        if kind is Tensor:
            add(x.dtype)
            add(x.data_ptr() % 16 == 0)
        elif kind is int:
            add(_number(x))
        elif x is None:
            add(None)
        elif kind in _compiled_in:
            add(id(x))
        elif kind is float or kind is bool:
            add(kind)
        elif issubclass(kind, tuple):
            add(kind)
            add(len(x))
            _describe(x, found)
        elif kind is Parameter:
            add(x.dtype)
            add(x.data_ptr() % 16 == 0)
        else:
            raise Unknown


@lru_cache(4096)
def _number(x: int) -> str:
    if x == 1:
        return "1"
    width = "int32" if -(2**31) <= x < 2**31 else "int64" if x < 2**63 else "uint64"
    return width if x % 16 else width + " of 16"
