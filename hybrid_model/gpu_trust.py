"""Asks before training whether this GPU computes the delta rule rightly."""

from __future__ import annotations

import torch
from torch import nn

from hybrid_ft.errors import ENVIRONMENT, InputError


def check_gpu(model: nn.Module, dtype: torch.dtype) -> None:
    """Run the kernels' self-test for the model's heads, or read what it said when it was last run here; nothing on a CPU.

    dtype   of the arithmetic that the model is trained in
    Raises InputError, status 3, one line, where a result is wrong.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return
    import triton

    from hybrid_ft.kernels.gated_delta_rule.trusted import faults

    for heads, dims in sorted(delta_heads(model)):
        found = faults(heads, dims, dtype, device)
        if found:
            raise InputError(
                f"{torch.cuda.get_device_name(device)} with triton {triton.__version__}: the gated delta rule's self-test "
                f"fails, and training would go wrong silently ({found[0]}; {len(found)} in all); install another "
                "release of triton or of torch, or report it",
                ENVIRONMENT,
            )


def delta_heads(model: nn.Module) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    """(H, HV), (K, V) of every gated delta rule in the model, by the names that transformers gives them."""
    names = ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim")
    found = [tuple(getattr(module, name, None) for name in names) for module in model.modules()]
    return {((h, hv), (k, v)) for h, hv, k, v in found if all(isinstance(n, int) for n in (h, hv, k, v))}  # type: ignore[misc]
