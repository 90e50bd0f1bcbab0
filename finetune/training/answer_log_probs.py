"""Log-probabilities of answers on shared prompts, as TRL's fused head gives them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from hybrid_ft.finetune.training.answer_tokens import AnswerTokens
from hybrid_ft.hybrid_model.door.spread import summed

_OF_ROWS = {"input_ids", "attention_mask", "prompt_lengths", "prompt_rows"}


def answer_log_probs(
    model: Callable[..., Any],
    answers: AnswerTokens,
    labels: torch.Tensor,
    seen: list[torch.Tensor] | None = None,
    **inputs: Any,
) -> SimpleNamespace:
    """What TRL reads from its fused head, [B, T - 1] each, for ``answers``, which hold the tokens of its padded rows.

    The model hands back the places before an answer's tokens alone: padded hidden states, which the head would look
    through for them, are never formed, and nothing is asked of the GPU. Entropies, mean logits and hits, which TRL only
    reports, are zeros. ``seen`` receives the log-probabilities.
    """
    answers = answers.to(labels.device)
    found = model(
        input_ids=answers.input_ids,
        layout=answers.layout,
        keep_positions=answers.before,
        labels=answers.targets,
        **{name: value for name, value in inputs.items() if name not in _OF_ROWS},
    ).log_probs
    # a process without any of the tokens has one that does not count
    found = found.flatten()[: len(answers.places)]
    log_probs = found.new_zeros(answers.shape[0] * answers.shape[1]).index_copy(0, answers.places, found)
    log_probs = summed(log_probs.view(answers.shape), answers.layout.spread)
    if seen is not None:
        seen.append(log_probs.detach())
    nothing = torch.zeros_like(log_probs, requires_grad=False)
    return SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
