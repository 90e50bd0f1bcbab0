"""Plain transformers without flash-linear-attention, causal-conv1d and mamba-ssm, on any device.

Where one of these is installed, transformers calls its Triton or CUDA kernels on tensors of every device, and on a CPU
they fail. What was saved is compared on a CPU, or on a GPU whose kernels are not the matter: with the torch functions
that transformers has for each of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType


@contextmanager
def torch_functions() -> Iterator[None]:
    """Inside the block the layers of every model of transformers that has been imported compute with torch alone."""
    changes = [
        (module, name, function)
        for key, module in list(sys.modules.items())
        if key.startswith("transformers.models.") and ".modeling_" in key
        for name, function in _hidden(module)
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    try:
        for module, name, function in changes:
            setattr(module, name, function)
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def _hidden(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Functions of a module that a wrapper stands in front of, by the name of the wrapper."""
    for name, value in list(vars(module).items()):
        inner = getattr(value, "__wrapped__", None)
        if isinstance(value, FunctionType) and isinstance(inner, FunctionType) and inner.__module__ == module.__name__:
            yield name, inner
