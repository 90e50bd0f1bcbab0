"""Whether a hook, wrapper, adapter, offloading or sharding watches a module.

A kernel may do a module's work together with its neighbour's where nobody stands there. Where somebody does, the module
is called as transformers calls it, with what transformers gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules import module as hooks_of_all

_BY_ROWS = ("_adapter_names_pre_forward_hook", "_alora_offsets_pre_forward_hook", "scalings_injection_hook")  # PEFT's
# transformers' and PEFT's names for the hook on the embedding that gives layers under checkpointing a gradient to pass
MARKING = ("make_inputs_require_grads", "make_inputs_require_grad")


def is_watched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module does anything besides ``kind.forward``."""
    return type(module) is not kind or "forward" in module.__dict__ or has_hooks(module)


def has_hooks(module: nn.Module) -> bool:
    """Of its own, or of all modules; those that only mark a result for gradient checkpointing do not count."""
    return bool(
        any(getattr(hook, "__name__", "") not in MARKING for hook in module._forward_hooks.values())
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks_of_all._global_forward_hooks
        or hooks_of_all._global_forward_pre_hooks
        or hooks_of_all._global_backward_hooks
        or hooks_of_all._global_backward_pre_hooks
    )


def hooks_below(*modules: nn.Module) -> bool:
    """Whether any of the modules or those below them has hooks that may look at what passes.

    Sharding's own, which gather a module's weights, do not.
    """
    return any(has_hooks(child) and not is_sharded(child) for module in modules for child in module.modules())


def goes_by_rows(*modules: nn.Module) -> bool:
    """Whether an adapter of PEFT's below the modules treats each row of a batch in its own way.

    ``adapter_names`` gives each row an adapter, aLoRA each row a place to begin at, X-LoRA each token its own mixture.
    """
    return any(
        any(_called(hook) in _BY_ROWS for hook in child._forward_pre_hooks.values())
        or type(getattr(child.__dict__.get("forward"), "__self__", None)).__name__.startswith("XLora")
        for module in modules
        for child in module.modules()
    )


def _called(hook: object) -> str:
    return getattr(getattr(hook, "func", hook), "__name__", "")


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP or DeepSpeed gathers the module's weights when it is called, on all processes together."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule) or any(hasattr(p, "ds_id") for p in module.parameters(recurse=False))


@contextmanager
def weights_of(*modules: nn.Module) -> Iterator[None]:
    """With the modules' weights on their device, though accelerate has offloaded them and they are read, not called.

    As transformers' ``force_accelerate_hooks``, whose modules' hooks get no arguments either.
    """
    hooked = [module for module in modules if getattr(module, "_hf_hook", None) is not None]
    for module in hooked:
        module._hf_hook.pre_forward(module)  # type: ignore[operator, union-attr]
    try:
        yield
    finally:
        for module in hooked:
            module._hf_hook.post_forward(module, ())  # type: ignore[operator, union-attr]
