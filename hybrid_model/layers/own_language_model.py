"""The head of a model that is written here, on rows: logits and loss."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names


class OwnLanguageModel:
    """To be named before transformers' classes. What it is mixed into has ``base_model`` and ``lm_head``."""

    def logits_of(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., vocabulary]."""
        logits: torch.Tensor = self.lm_head(hidden)
        return logits

    @under_both_names
    @can_return_tuple
    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, vocabulary], or of the last ``logits_to_keep`` columns, and the loss of shifted labels."""
        out = self.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            inputs_embeds=inputs_embeds, use_cache=use_cache, **{CACHE: past_key_values}, **kwargs,
        )  # fmt: skip
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits_of(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=out.hidden_states, **{CACHE: out.get(CACHE)}
        )
