"""Log-probabilities of targets by definition, with all logits at once.

z = hidden weight^T,  log p_j = z_j - log sum_v exp(z_v),  entropy = -sum_v p_v log p_v
"""

import torch
from torch import Tensor


def token_log_probs_reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``token_log_probs`` in float32 (float64 for float64 inputs); the gradients are autograd's."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    logits = hidden.to(dtype) @ weight.to(dtype).T
    log_p = logits.log_softmax(-1)
    of_targets = log_p.gather(-1, targets[:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).detach()
    return of_targets, entropy, logits.gather(-1, targets[:, None]).squeeze(-1) == logits.amax(-1)
