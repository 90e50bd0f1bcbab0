"""Custom operators with little between a call and its function.

``torch.library.custom_op`` asks for every argument's default and for results that share memory, at each call, and goes
through the dispatcher twice: for the delta rule 0.1 ms of a forward pass. What it promises, tests/kernels hold by
``torch.library.opcheck``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload

from hybrid_ft.kernels.first_order import first_order

LIBRARY = torch.library.Library("hybrid_ft", "FRAGMENT")
DEVICES = {DispatchKey.CPU, DispatchKey.CUDA}


class Differentiated(torch.autograd.Function):
    """An operator for autograd, as torch/_library/autograd.py makes it; each has a class of its own."""

    formula: tuple[Callable[..., Any], Callable[..., None]] | None = None


_differentiated: dict[OpOverload, type[Differentiated]] = {}


def operator(name: str) -> Callable[[Callable[..., Any]], OpOverload]:
    """The operator hybrid_ft::``name`` of a function on tensors, which changes none of them and whose results share no
    memory. Called with positional arguments alone; its results cannot be differentiated before
    ``register_autograd``."""

    def define(function: Callable[..., Any]) -> OpOverload:
        LIBRARY.define(
            name + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,)
        )
        op: OpOverload = getattr(torch.ops.hybrid_ft, name).default
        # a compiler that runs what it could not trace must not look into either
        LIBRARY.impl(name, torch._disable_dynamo(function), "CompositeExplicitAutograd")
        LIBRARY.impl(name, torch._disable_dynamo(_above(op, function)), "Autograd", with_keyset=True)
        return op

    return define


def register_fake(op: OpOverload) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Shapes and dtypes of the results, for what traces without data."""
    return torch.library.register_fake(op.name(), lib=LIBRARY)


def register_autograd(op: OpOverload, backward: Callable[..., Any], setup_context: Callable[..., None]) -> None:
    """``setup_context(ctx, inputs, output)``, ``backward(ctx, *gradients)``; as torch's function of that name, but that
    ``ctx.needs_input_grad`` may be longer at its end."""
    _differentiated[op].formula = backward, setup_context


def _above(op: OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
    """What the dispatcher calls where autograd is to know of it."""
    # it has taken arguments off the end that are the default
    defaults = tuple(argument.default_value for argument in op._schema.arguments)

    def below(keys: Any, inputs: tuple[Any, ...]) -> Any:
        """The function at once, unless a mode, such as a tracer's or a checkpoint's, or a kind of
        tensor wants the call."""
        with torch._C._AutoDispatchBelowAutograd():
            if (keys & torch._C._after_ADInplaceOrView_keyset).highestPriorityTypeId() in DEVICES:
                return function(*inputs)
            return op.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    class Own(Differentiated):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> Any:
            inputs, keys = given[:-1], given[-1]
            output = below(keys, inputs)
            if Own.formula:
                Own.formula[1](ctx, inputs, output)
            return output

        @staticmethod
        @first_order
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            if Own.formula is None:
                raise RuntimeError(f"{op.name()} cannot be differentiated")
            found = Own.formula[0](ctx, *gradients)
            return (*found, None) if isinstance(found, tuple) else (found, None)

    def above(keys: Any, *inputs: Any) -> Any:
        inputs = (*inputs, *defaults[len(inputs) :])
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Own.apply(*inputs, keys)
        return below(keys, inputs)

    _differentiated[op] = Own
    return above
