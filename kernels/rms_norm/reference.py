"""The RMS norm by its definition, over the last dimension.

y = weight * x / sqrt(mean(x^2) + eps)
"""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """``rms_norm`` computed in float32 (float64 for float64 inputs); the gradients are autograd's."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    return (weight.to(dtype) * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps))).to(x.dtype)
