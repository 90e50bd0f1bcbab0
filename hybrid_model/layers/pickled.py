"""Flat modules in copies and pickles, as ``torch.save`` and spawned processes make them.

A pickle names a class by where it is found, and a flat class bears the name of transformers'. It is pickled as that
one, and the model is laid flat again when it is read.
"""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from typing import Any

from torch import nn


def let_pickle(flat: Any, again: Callable[[Any, Any], None] | None = None) -> None:
    """Give a flat class its ways into copies and pickles.

    again: for a whole model, a function of a module that fills what was pickled as transformers' and lays it flat
    """
    flat.__deepcopy__ = _copied
    flat.__reduce_ex__ = _part if again is None else lambda module, protocol: (*_part(module), None, None, again)


def _copied(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    cls: Any = type(module)
    made: nn.Module = _new(cls)
    memo[id(module)] = made
    made.__setstate__(copy.deepcopy(_state(module), memo))
    return made


def _part(module: nn.Module, protocol: int = 2) -> tuple[Any, ...]:
    return _new, (_found(type(module)),), _state(module)


def _new(cls: Any) -> Any:
    return cls.__new__(cls)


def _state(module: nn.Module) -> Any:
    return object.__reduce_ex__(module, 2)[2]


def _found(flat: type) -> type:
    """The class that a pickle finds under the name of ``flat``. Raises PicklingError where there is none."""
    for cls in flat.__mro__:
        if cls.__name__ == flat.__name__ and getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls:
            return cls
    raise pickle.PicklingError(f"{flat.__name__} is made here and cannot be pickled; save the model by save_pretrained")
