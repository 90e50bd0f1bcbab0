"""The gated RMS norm by its definition, over the last dimension.

y = weight * (x / sqrt(mean(x^2) + eps)) * silu(gate)
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_rms_norm_reference(x: Tensor, gate: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """``gated_rms_norm`` computed in float32 (float64 for float64 inputs); the gradients are autograd's."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    wide = x.to(dtype)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight.to(dtype) * normed * F.silu(gate.to(dtype))).to(x.dtype)
