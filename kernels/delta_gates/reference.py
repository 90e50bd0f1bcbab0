"""The gated delta rule's gates by their definition.

    g     = -exp(A_log) softplus(a + dt_bias)
    beta  = 2 sigmoid(b)                        (1 instead of 2 without negative eigenvalues)

As in transformers' OlmoHybridGatedDeltaNet: the decay in float32 at least, beta in b's dtype.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def delta_gates_reference(
    a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor, allow_neg_eigval: bool = True
) -> tuple[Tensor, Tensor]:
    """``delta_gates``; the gradients are autograd's."""
    beta = b.sigmoid()
    if allow_neg_eigval:
        beta = beta * 2.0
    a = a if a.dtype == torch.float64 else a.float()
    return F.softplus(a + dt_bias) * A_log.to(a.dtype).exp().neg(), beta
