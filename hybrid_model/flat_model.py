"""A base model that runs as transformers wrote it, on one flat row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import StaticCache

from hybrid_ft.hybrid_model.door.batch import BATCH_KEYS, read_batch, shape_of
from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.door.cached_call import check_rows
from hybrid_ft.hybrid_model.door.current import laid_out
from hybrid_ft.hybrid_model.door.layout import Door
from hybrid_ft.hybrid_model.door.shared_prompts import select_tokens
from hybrid_ft.hybrid_model.families.family import Family
from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.embedding import embed_flat
from hybrid_ft.hybrid_model.layers.watched import goes_by_rows, has_hooks, hooks_below


@cache
def flat_model(cls: type[PreTrainedModel], family: Family) -> type[PreTrainedModel]:
    """A base model that is its batches' door."""

    class FlatModel(cls):
        laid_flat = True

        @under_both_names
        def forward(
            self,
            input_ids: torch.Tensor | None = None,
            attention_mask: torch.Tensor | None = None,
            position_ids: torch.Tensor | None = None,
            past_key_values: Any = None,
            inputs_embeds: torch.Tensor | None = None,
            use_cache: bool | None = None,
            keep_positions: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            """Hidden states of a batch, in the form it was given in, zeros at padding.

            input_ids [B, T] or inputs_embeds [B, T, D]; attention_mask [B, T], or of pairs [B, 1, T, T]. layout
            describes one row of tokens, [1, N], where documents may continue one another. prompt_lengths and
            prompt_rows, int64 [B], name the first tokens that rows share. keep_positions, bool [B, T]: hand back these
            places alone, [1, M, D], row by row; with a layout also int64 [M], the numbers of places, in any order.
            use_cache defaults to the config's, and to False in training; a cache holds rows of one document each.

            ``read_batch`` reads them all. Raises ValueError for boundaries that contradict each other and for packed
            rows with a cache.
            """
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("pass exactly one of input_ids and inputs_embeds")
            given = input_ids if input_ids is not None else inputs_embeds
            assert given is not None
            if kwargs.get("output_attentions") or self.config.output_attentions:
                raise ValueError(
                    f"output_attentions: attention weights of {family.name} are not formed here; open the model in plain "
                    'transformers with attn_implementation="eager"'
                )
            return_dict = kwargs.pop("return_dict", None)
            forms = {name: kwargs.pop(name, None) for name in BATCH_KEYS}
            for name in ("max_length_q", "max_length_k"):
                kwargs.pop(name, None)
            if use_cache is None:
                use_cache = self.config.use_cache and not self.training
            shape = shape_of(given)
            if isinstance(past_key_values, StaticCache) and family.classes:
                raise ValueError(
                    f"past_key_values is a StaticCache, which {family.name} has no steps for; leave cache_implementation unset"
                )
            if isinstance(past_key_values, StaticCache) and getattr(attention_mask, "ndim", 4) == 4:
                # generate has made such a cache's masks, of the columns that it has
                if shape[1] > 1:
                    self._check_continues(shape[1], past_key_values)
                return super().forward(
                    input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                    position_ids=position_ids, use_cache=True, return_dict=return_dict,
                    **{CACHE: past_key_values}, **kwargs,
                )  # fmt: skip
            if past_key_values is not None and past_key_values.get_seq_length():
                return self._continue(
                    shape, past_key_values, input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=True,
                    attention_mask=attention_mask, position_ids=position_ids, return_dict=return_dict, **kwargs,
                )  # fmt: skip

            noisy = self.training and input_ids is not None and hooks_below(self.get_input_embeddings())
            batch = read_batch(
                given,
                (),
                attention_mask=attention_mask,
                position_ids=position_ids,
                share_prompts=family.forks and not noisy and (forms["prompt_rows"] is None or not goes_by_rows(self)),
                keep_padding=None,
                **forms,
            )
            door = batch.door
            assert door is not None
            pairs = getattr(attention_mask, "ndim", 2) == 4
            own_rows = forms["layout"] is None and forms["prompt_rows"] is None and door.one_per_row and not pairs
            if past_key_values is not None and not own_rows:
                raise ValueError(
                    "packed rows cannot fill a cache, nor rows that share prompts or come with a mask of pairs: pass one "
                    "document a row, with the mask of its tokens, or no past_key_values"
                )
            if (use_cache or past_key_values is not None) and own_rows and keep_positions is None:
                return super().forward(
                    input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                    position_ids=position_ids, use_cache=True, return_dict=return_dict,
                    **{CACHE: past_key_values}, **kwargs,
                )  # fmt: skip
            if goes_by_rows(self):
                own_rows |= forms["prompt_rows"] is not None
                if not own_rows or keep_positions is not None:
                    raise ValueError(
                        "adapter_names, aLoRA and X-LoRA treat each row in its own way, and the layers of this model see "
                        "one row of all documents: pass one document a row, or one adapter"
                    )
                return super().forward(
                    input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                    position_ids=position_ids, use_cache=False, return_dict=return_dict, **kwargs,
                )  # fmt: skip
            with laid_out(door.layout), self._embedding(input_ids, door):
                outputs = super().forward(
                    input_ids=None if input_ids is None else door.flatten(input_ids).unsqueeze(0),
                    inputs_embeds=None if inputs_embeds is None else door.flatten(inputs_embeds).unsqueeze(0),
                    position_ids=door.layout.own_positions.unsqueeze(0),
                    use_cache=False,
                    return_dict=True,
                    **kwargs,
                )
            outputs = _out_of(door, outputs, keep_positions)
            return outputs.to_tuple() if return_dict is False else outputs

        @contextmanager
        def _embedding(self, input_ids: torch.Tensor | None, door: Door) -> Iterator[None]:
            """Inside the block who watches the embedding is shown rows and documents, not all of them in one row.

            transformers' models scale what the embedding gives in ways of their own, so that it cannot be computed
            before.
            """
            embed = self.get_input_embeddings()
            if input_ids is None or not (has_hooks(embed) or hooks_below(embed)):
                yield
                return
            name = next(name for name, child in self.named_children() if child is embed)
            # an instance's own attribute is found before its modules
            self.__dict__[name] = lambda flat: embed_flat(embed, input_ids, door).unsqueeze(0)
            try:
                yield
            finally:
                del self.__dict__[name]

        def _continue(self, shape: tuple[int, int], past_key_values: Any, **inputs: Any) -> Any:
            """One call with a filled cache, as transformers computes it."""
            past = int(past_key_values.get_seq_length())
            self._check_continues(shape[1], past_key_values)
            kept = (getattr(layer, "keys", None) for layer in past_key_values.layers)
            if (keys := next((one for one in kept if one is not None), None)) is not None:
                check_rows(len(keys), shape[0])
            if inputs["position_ids"] is None and inputs["attention_mask"] is None:
                given = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
                inputs["position_ids"] = torch.arange(past, past + shape[1], device=given.device).unsqueeze(0)
            return super().forward(**{CACHE: past_key_values}, **inputs)

        def _check_continues(self, tokens: int, past_key_values: Any) -> None:
            if tokens > 1 and not family.continues and past_key_values.get_seq_length():
                raise ValueError(
                    f"{family.name} cannot continue a cache with {tokens} tokens at once: transformers' scan starts "
                    "afresh; pass one token a row, or the whole row"
                )

    return disguised(FlatModel, cls)


def _out_of(door: Door, outputs: Any, keep_positions: torch.Tensor | None) -> Any:
    """A flat row's outputs in the form of the batch: [1, N, D] to [B, T, D], or to the kept places [1, M, D]."""
    flat = outputs.last_hidden_state.squeeze(0)
    outputs["last_hidden_state"] = (
        door.unflatten(flat) if keep_positions is None else select_tokens(door, flat, keep_positions).unsqueeze(0)
    )
    if outputs.get("hidden_states") is not None:
        seen = [door.unflatten(hidden.squeeze(0)) for hidden in outputs.hidden_states]
        outputs["hidden_states"] = tuple(seen)
    if outputs.get("router_logits") is not None:
        # by the batch's places, so that its mask says which of them are tokens
        logits = [door.unflatten(router.flatten(0, -2)).flatten(0, 1) for router in outputs.router_logits]
        outputs["router_logits"] = tuple(logits)
    return outputs
