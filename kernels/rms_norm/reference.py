"""The RMS norm by its definition, over the last dimension.

norm(x) = weight * x / sqrt(mean(x^2) + eps)
"""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float = 1e-6, residual: Tensor | None = None) -> Tensor:
    """``rms_norm`` computed in float32 (float64 for float64 inputs); the gradients are autograd's."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    y = (weight.to(dtype) * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))).to(x.dtype)
    return y if residual is None else residual + y


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """``add_rms_norm``, likewise."""
    total = residual + x
    return total, rms_norm_reference(total, weight, eps)
