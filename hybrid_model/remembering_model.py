"""A base model whose decoder layers are ours, with layouts and caches of ours.

The cache is by rows, with padding anywhere; a filled one is continued with one token a row or with several, exactly.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from hybrid_ft.hybrid_model.door.batch import BATCH_KEYS, Batch, read_batch
from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.attention import Rope
from hybrid_ft.hybrid_model.layers.attention_weights import recorded_weights
from hybrid_ft.hybrid_model.layers.embedding import embed_flat
from hybrid_ft.hybrid_model.layers.watched import goes_by_rows, hooks_below


@cache
def remembering_model(cls: Any) -> type[PreTrainedModel]:
    """A base model that is its batches' door: rows, packed rows or pairs, [B, T], come in, and [B, T, D] go out.

    Between the layers they are flat, [1, N, D] without padding, so that no layer can mix documents.
    """

    class RememberingModel(cls):
        laid_flat = True

        @under_both_names
        @can_return_tuple
        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Cache | None = None,
            inputs_embeds: torch.Tensor | None = None,
            use_cache: bool | None = None,
            keep_positions: torch.Tensor | None = None,
            output_hidden_states: bool | None = None,
            output_attentions: bool | None = None,
            **kwargs: Any,
        ) -> BaseModelOutputWithPast:
            """Hidden states of a batch in any of the forms ``open_door`` reads, in that same form, zeros at padding.

            input_ids [B, T] or inputs_embeds [B, T, D]. attention_mask is [B, T], [B, past + T] with a filled cache, or
            a mask of pairs [B, 1, T, T] that is causal inside documents. position_ids, cu_seq_lens_q, cu_seq_lens_k and
            seq_idx say where documents begin. layout describes one row of tokens, [1, N], where documents may continue
            one another; no mask then. prompt_lengths and prompt_rows, int64 [B], name the first tokens that rows share:
            they are computed once, as ``open_shared_door`` says, unless noise is added to the embeddings of each row.
            keep_positions, bool [B, T]: hand back these places alone, [1, M, D], row by row; with a layout also int64
            [M], the numbers of places, in any order. use_cache defaults to the config's, and to False in training. A
            cache holds rows of one document each.

            output_attentions: also the weights [B, H, T, S] of the attention layers, in a slow path that needs a cache.

            Raises ValueError for boundaries that contradict each other, packed rows with a cache, a cache of other
            rows, and attention weights of packed rows or shared prompts.
            """
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("pass exactly one of input_ids and inputs_embeds")
            if output_attentions is None:
                output_attentions = self.config.output_attentions
            given = input_ids if input_ids is not None else inputs_embeds
            assert given is not None
            if use_cache is None:
                use_cache = self.config.use_cache and not self.training
            if self.training and torch.is_grad_enabled() and any(layer.gradient_checkpointing for layer in self.layers):
                # backward runs the layers again, and a cache would be written twice
                use_cache, past_key_values = False, None
            elif output_attentions:
                use_cache = True
            # noise on the embeddings (NEFTune) comes from a hook, and is another in each of the rows that
            # share a prompt
            noisy = self.training and input_ids is not None and hooks_below(self.embed_tokens)
            by_rows = partial(goes_by_rows, self)
            batch = read_batch(
                given,
                self.config.layer_types,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                share_prompts=not noisy and (kwargs.get("prompt_rows") is None or not by_rows()),
                keep_padding=lambda: hooks_below(self.layers, self.norm) or by_rows(),
                **{name: value for name, value in kwargs.items() if name in BATCH_KEYS},
            )
            if output_attentions and batch.call is None:
                raise ValueError(
                    "output_attentions: attention weights are formed for rows of one document each, without gradient "
                    "checkpointing; pass no packed rows, shared prompts or layout"
                )
            # Padded rows, packed rows, documents by bounds, shared prompts and a step of a filled cache have become
            # two forms here: a door, which has laid all tokens end to end, or none, where each row has one token
            # and its cache.
            hidden = batch.flat(given) if input_ids is None else self._embed(input_ids, batch)
            if output_hidden_states is None:
                output_hidden_states = self.config.output_hidden_states
            seen: list[torch.Tensor] | None = [] if output_hidden_states else None
            rope = self._rope(hidden, batch.positions())
            with recorded_weights(self.layers if output_attentions else ()) as weights:
                for layer, cache in zip(self.layers, batch.caches):
                    if seen is not None:
                        seen.append(batch.rows(hidden))
                    # by place: checkpointing drops keywords that are called as a cache is
                    hidden = layer(hidden, batch.layout, rope, cache, batch.call)
            # the norm last: where few places are kept, it is spared the others
            if keep_positions is not None:
                hidden = self.norm(batch.kept(hidden, keep_positions))
            else:
                hidden = batch.rows(self.norm(hidden))
            if seen is not None:
                seen.append(hidden)
            return BaseModelOutputWithPast(
                last_hidden_state=hidden,
                hidden_states=None if seen is None else tuple(seen),
                attentions=tuple(weights) if output_attentions else None,
                **{CACHE: batch.past_key_values},
            )

        def _embed(self, input_ids: torch.Tensor, batch: Batch) -> torch.Tensor:
            """The tokens' embeddings in the form of the hidden states."""
            if batch.door is None:
                return self.embed_tokens(input_ids)
            return batch.door.layout.formed(embed_flat(self.embed_tokens, input_ids, batch.door))

        def _rope(self, hidden: torch.Tensor, positions: torch.Tensor) -> Rope | None:
            """cos and sin, both [N, head size]."""
            if self.rotary_emb is None:
                return None
            cos, sin = self.rotary_emb(hidden, positions.unsqueeze(0))
            return cos.squeeze(0), sin.squeeze(0)

    return disguised(RememberingModel, cls)
