"""The name of a model's cache among its arguments, which changed in transformers 5.24."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from transformers.modeling_outputs import BaseModelOutputWithPast

OLD, NEW = "past_key_values", "cache"
CACHE = NEW if NEW in BaseModelOutputWithPast.__dataclass_fields__ else OLD

F = TypeVar("F", bound=Callable[..., Any])


def under_both_names(method: F) -> F:
    """A method that has ``past_key_values`` among its parameters takes it as ``cache`` too,
    whatever transformers is here.

    Its signature shows the name that this transformers looks for. Raises TypeError where both are given.
    """

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if (given := kwargs.pop(NEW, None)) is not None:
            if kwargs.get(OLD) is not None:
                raise TypeError(f"got both {OLD} and {NEW}, two names of one argument; pass {CACHE} alone")
            kwargs[OLD] = given
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    parameters = [each.replace(name=CACHE) if each.name == OLD else each for each in signature.parameters.values()]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
