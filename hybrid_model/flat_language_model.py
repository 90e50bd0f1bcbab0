"""A flat model with its head: packed loss, generation, files under released names."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, StaticCache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import ModelOutput, can_return_tuple

from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.door.labels import predictable
from hybrid_ft.hybrid_model.door.static_cache import check_room
from hybrid_ft.hybrid_model.families.family import Family
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.released_files import ReleasedFiles


@cache
def flat_language_model(cls: Any, family: Family) -> type[PreTrainedModel]:
    """transformers' class with its loss, generation and saving, of a family's batches in every form."""

    class FlatLanguageModel(ReleasedFiles, cls):
        @under_both_names
        @can_return_tuple
        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Cache | None = None,
            inputs_embeds: torch.Tensor | None = None,
            labels: torch.Tensor | None = None,
            use_cache: bool | None = None,
            logits_to_keep: int | torch.Tensor = 0,
            **kwargs: Any,
        ) -> CausalLMOutputWithPast:
            """Logits [B, T, vocabulary], or of the last ``logits_to_keep`` columns, and the loss of shifted labels.

            The last one of a row that is padded on the right is its last real token's: ``generate`` goes on from there.
            Raises ValueError where a cache would be filled with such rows, unless the layers remember rows.

            The base model says what a batch may be. A label that no token of its document predicts, because
            it follows padding or begins a document, is left out of the loss.
            """
            if labels is not None:
                bounds = {name: kwargs.get(name) for name in ("cu_seq_lens_q", "seq_idx", "layout")}
                labels = predictable(labels, attention_mask, position_ids, **bounds)
            given = input_ids if input_ids is not None else inputs_embeds
            last = None
            if labels is None and isinstance(logits_to_keep, int) and logits_to_keep == 1 and given is not None:
                last = _last_tokens(attention_mask, given.shape[1])
            if last is not None and not family.remembers and (use_cache is not False or past_key_values is not None):
                raise ValueError(
                    f"a cache of {family.name} goes on from the last column of each row, and here it is padding in one; pad "
                    "on the left, or pass use_cache=False"
                )
            # the head is then asked for all the places that are kept, [1, B]: one for each row
            if last is not None:
                logits_to_keep, kwargs["keep_positions"] = 0, last
            outputs = super().forward(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                labels=labels,
                use_cache=use_cache,
                logits_to_keep=logits_to_keep,
                return_dict=True,
                **{CACHE: past_key_values},
                **kwargs,
            )
            if last is not None:
                outputs.logits = outputs.logits.transpose(0, 1)
            return outputs

        def _update_model_kwargs_for_generation(
            self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> dict[str, Any]:
            """transformers' own, which counts positions on from the last column; after padding they
            are counted by the mask."""
            mask = model_kwargs.get("attention_mask")
            if (
                not model_kwargs.get("use_cache")
                and mask is not None
                and _last_tokens(mask, mask.shape[-1]) is not None
            ):
                model_kwargs.pop("position_ids", None)
            return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    if family.remembers:
        return disguised(_generating(FlatLanguageModel), cls)
    return disguised(FlatLanguageModel, cls)


def _generating(cls: Any) -> Any:
    class Generating(cls):
        @under_both_names
        def prepare_inputs_for_generation(
            self,
            input_ids: torch.Tensor,
            next_sequence_length: int | None = None,
            past_key_values: Cache | None = None,
            attention_mask: torch.Tensor | None = None,
            inputs_embeds: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> dict[str, Any]:
            """transformers' own, without its detours where there is one new token a row: the
            step needs no positions."""
            filled = past_key_values is not None and past_key_values.get_seq_length() > 0
            first = kwargs.get("is_first_iteration")
            if next_sequence_length != 1 or not filled or (first and inputs_embeds is not None):
                return super().prepare_inputs_for_generation(
                    input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, **kwargs
                )
            if isinstance(past_key_values, StaticCache) and not first:
                # it knows its columns: a mask that grows would be another graph for each step
                check_room(past_key_values, (input_ids if attention_mask is None else attention_mask).shape[1])
                attention_mask = None
            dropped = ("position_ids", "labels", "is_first_iteration")
            inputs = {name: value for name, value in kwargs.items() if name not in dropped}
            # contiguous: a compiled graph counts on its strides
            last = input_ids[:, -1:].clone(memory_format=torch.contiguous_format)
            inputs.update({"input_ids": last, CACHE: past_key_values, "attention_mask": attention_mask})
            return inputs

        @staticmethod
        def create_masks_for_generate(
            config: Any, inputs_embeds: Any, attention_mask: torch.Tensor | None, *args: Any, **kwargs: Any
        ) -> torch.Tensor | None:
            """The tokens' mask: a static cache makes its layers' own."""
            return attention_mask

        def _update_model_kwargs_for_generation(
            self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
        ) -> dict[str, Any]:
            """transformers' own; positions are not carried along, because each row's are counted from
            its cache or mask."""
            model_kwargs.pop("position_ids", None)
            return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    return Generating


def _last_tokens(attention_mask: torch.Tensor | None, columns: int) -> torch.Tensor | None:
    """bool [B, T]: the last real token of each row, where one is not in the last column; else None."""
    if columns == 1 or not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    real = attention_mask[:, -columns:] != 0
    if bool(real[:, -1].all()) or not bool(real.any(1).all()):
        return None
    last = (real * torch.arange(columns, device=real.device)).argmax(1, keepdim=True)
    return torch.zeros_like(real).scatter_(1, last, True)
