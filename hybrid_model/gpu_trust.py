"""Asks before training whether this GPU computes delta rule and Mamba-2 rightly."""

from __future__ import annotations

import torch
from torch import nn

from hybrid_ft.errors import ENVIRONMENT, InputError

Sizes = set[tuple[tuple[int, int], tuple[int, int]]]


def check_gpu(model: nn.Module, dtype: torch.dtype) -> None:
    """Run the kernels' self-test for the model's heads, or read what it said when it was last run here;
    nothing on a CPU.

    dtype   of the arithmetic that the model is trained in
    Raises InputError, status 3, one line, where a result is wrong.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return
    import triton

    from hybrid_ft.kernels.gated_delta_rule.trusted import faults

    kinds = [(sizes, False) for sizes in sorted(delta_heads(model))]
    kinds += [(sizes, True) for sizes in sorted(mamba2_heads(model))]
    for (heads, dims), mamba2 in kinds:
        found = faults(heads, dims, dtype, device, mamba2=mamba2)
        if found:
            raise InputError(
                f"{torch.cuda.get_device_name(device)} with triton {triton.__version__}: the gated delta rule's self-test "
                f"fails, and training would go wrong silently ({found[0]}; {len(found)} in all); install another "
                "release of triton or of torch, or report it",
                ENVIRONMENT,
            )


def delta_heads(model: nn.Module) -> Sizes:
    """(H, HV), (K, V) of every gated delta rule in the model, by the names that transformers gives them."""
    return _sizes(model, ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim"))


def mamba2_heads(model: nn.Module) -> Sizes:
    """The same of every Mamba-2 mixer: groups and heads, the state's size and a head's."""
    return _sizes(model, ("n_groups", "num_heads", "ssm_state_size", "head_dim"))


def _sizes(model: nn.Module, names: tuple[str, str, str, str]) -> Sizes:
    found = [tuple(getattr(module, name, None) for name in names) for module in model.modules()]
    return {((h, hv), (k, v)) for h, hv, k, v in found if all(isinstance(n, int) for n in (h, hv, k, v))}  # type: ignore[misc]
