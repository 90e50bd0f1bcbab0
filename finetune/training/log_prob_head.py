"""TRL's fused head, on a CPU by this project's own kernel.

Without Triton, TRL's fold passes over tiles of [4096, 32768] some twenty times, masked positions included: 17 of the
19 CPU seconds of a step of 3,231 tokens on a small model with the Olmo vocabulary, and 3 GB. On a GPU it stays TRL's
Triton kernel until a measurement (``make bench-gpu``, its row of token log-probabilities) shows this project's to be at
least 1.15 times as fast: both do the same four matrix products, which take most of the time.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.kernels.token_log_probs import token_log_probs


def use_own_head_on_cpu(model: PreTrainedModel) -> None:
    """Make ``model(..., labels=labels, fused_lm_head=True)``, as TRL has patched it, use ``token_log_probs`` on a CPU.

    The result is TRL's: ``log_probs``, ``entropy`` and ``is_top1`` [B, T - 1], zero where the next label is -100.
    """
    of_trl = model.forward
    prepared = family_of(model.config).head

    # generate checks its arguments against the signature
    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> Any:
        # TRL's fold multiplies hidden states and weight as they stand
        of_trls_kind = labels is not None and labels.device.type != "cpu" and prepared is None
        if not fused_lm_head or labels is None or of_trls_kind:
            return of_trl(
                *args, fused_lm_head=fused_lm_head, labels=labels, num_items_in_batch=num_items_in_batch, **kwargs
            )
        hidden = self.base_model(*args, **kwargs | {"use_cache": False}).last_hidden_state[:, :-1]
        targets = labels[:, 1:]
        mask = targets != -100
        hidden, weight = hidden[mask], self.get_output_embeddings().weight
        if prepared is not None:
            hidden, weight = prepared(self.config, hidden, weight)
        of_labels = token_log_probs(hidden, weight, targets[mask])
        log_probs, entropy, is_top1 = (
            values.new_zeros(mask.shape).masked_scatter(mask, values) for values in of_labels
        )
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / count, log_probs=log_probs, entropy=entropy, is_top1=is_top1, label_mask=mask
        )

    model.forward = types.MethodType(forward, model)
