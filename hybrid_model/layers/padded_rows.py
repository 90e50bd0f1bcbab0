"""Rows of base models written here: a layout's, or padded, with a cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from hybrid_ft.hybrid_model.door.cache_name import CACHE
from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.door.layout import SequenceLayout


@dataclass
class Rows:
    """One call's.

    hidden  [B, T, D], what the first layer gets
    real    bool [B, S], which of the past and the new places are tokens; None where ``layout`` says it
    layout  of the one row's segments; None for rows of one document each
    cache   what the layers read and fill; None where nothing is kept
    """

    hidden: torch.Tensor
    real: torch.Tensor | None
    layout: SequenceLayout | None
    cache: Any

    def positions(self) -> torch.Tensor:
        """int64 [B, T]: a token's place among its row's tokens, or in its document."""
        if self.layout is not None:
            return self.layout.positions.unsqueeze(0)
        assert self.real is not None
        return (self.real.long().cumsum(1) - 1).clamp(min=0)[:, -self.hidden.shape[1] :]

    def seen(self, window: int | None = None) -> torch.Tensor | None:
        """What attention sees, bool [B, 1, T, S]; None where the layout says it."""
        return None if self.real is None else seen_by_queries(self.real, self.hidden.shape[1], window)

    def padding(self) -> torch.Tensor | None:
        """The mask [B, T] of a recurrent mixer; None where nothing is padded or a state goes on."""
        if self.real is None or self.real.shape[1] > self.hidden.shape[1] or bool(self.real.all()):
            return None
        return self.real

    def outputs(
        self, seen: list[torch.Tensor], shown: bool, own: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    ) -> BaseModelOutputWithPast:
        """Of what every layer was given and the last norm gives; ``own`` takes the rows' own places of each."""
        hidden_states = tuple(map(own, seen)) if shown else None
        return BaseModelOutputWithPast(
            last_hidden_state=own(seen[-1]), hidden_states=hidden_states, **{CACHE: self.cache}
        )


def read_rows(
    model: PreTrainedModel,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past_key_values: Any,
    use_cache: bool | None,
    before: int = 0,
) -> Rows:
    """The embeddings of input_ids [B, T], or inputs_embeds [B, T, D], and what is to be seen of them.

    Each row is one document, padded where attention_mask [B, past + T] is 0. ``before`` of a cache's places are no
    tokens of the rows: the mask knows nothing of them. Where a layout is current nothing is kept.
    """
    hidden = model.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
    layout = current_layout()
    if layout is not None:
        return Rows(hidden, None, layout, None)
    if use_cache is None:
        use_cache = model.config.use_cache and not model.training
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=model.config)
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    columns = hidden.shape[1] + max(past - before, 0)
    real = hidden.new_ones(len(hidden), columns) if attention_mask is None else attention_mask[:, -columns:]
    return Rows(hidden, real.bool(), None, past_key_values)


def seen_by_queries(real: torch.Tensor, queries: int, window: int | None = None) -> torch.Tensor:
    """bool [B, 1, T, S]: of the places ``real`` [B, S] those that each of the last T = ``queries`` sees, or ``window``
    of them.

    A query at a padded place sees itself, so that its softmax is defined. Padding lies before or after a row's tokens.
    """
    whole = real.shape[1]
    j = torch.arange(whole, device=real.device)
    i = j[whole - queries :, None]
    seen = ((j <= i) & real[:, None, None, :]) | (j == i)
    return seen if window is None else seen & (j > i - window)


def rope_of(positions: torch.Tensor, size: int, base: float, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [B, T, size] of the positions [B, T], each frequency twice, as transformers rotates halves."""
    inverse = 1.0 / base ** (torch.arange(0, size, 2, device=positions.device).float() / size)
    angles = (positions[..., None].float() * inverse).repeat(1, 1, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)
