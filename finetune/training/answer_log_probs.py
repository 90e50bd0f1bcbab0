"""Log-probabilities of answers on shared prompts, as TRL's fused head gives them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F


def answer_log_probs(
    model: Callable[..., Any],
    labels: torch.Tensor,
    attention_mask: torch.Tensor,
    seen: list[torch.Tensor] | None = None,
    **inputs: Any,
) -> SimpleNamespace:
    """What TRL reads from its fused head, [B, T - 1] each; the model hands back the tokens before a labelled one alone.

    The padded hidden states, which the head would look through for them, are never formed. Rows are padded on the
    right. Entropies, mean logits and hits, which TRL only reports, are zeros. ``seen`` receives the log-probabilities.
    """
    labels = labels[:, 1:]
    wanted = labels != -100
    keep = F.pad(wanted, (0, 1))
    # a head leaves out the last place it is given: the batch's last token, which predicts nothing, comes for that
    keep[-1, attention_mask[-1].sum() - 1] = True
    targets = F.pad(labels[wanted], (1, 0), value=-100).unsqueeze(0)
    found = model(**inputs, attention_mask=attention_mask, keep_positions=keep, labels=targets).log_probs
    log_probs = found.new_zeros(wanted.shape).masked_scatter(wanted, found)
    if seen is not None:
        seen.append(log_probs.detach())
    nothing = torch.zeros_like(log_probs, requires_grad=False)
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
