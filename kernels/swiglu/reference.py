"""The gated activation of an MLP by its definition.

y = silu(gate) * up = gate / (1 + exp(-gate)) * up
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate: Tensor, up: Tensor) -> Tensor:
    """``swiglu`` computed in float32 (float64 for float64 inputs); the gradients are autograd's."""
    dtype = torch.float64 if gate.dtype == torch.float64 else torch.float32
    return (F.silu(gate.to(dtype)) * up.to(dtype)).to(gate.dtype)
