"""A model of transformers', laid flat: the same weights, names and conversions, other forwards.

``lay_flat`` swaps the classes of a built model's mixers, decoder layers and base model. Parameters, module names, FSDP
wrapping, device maps and saving stay transformers'. The base model becomes the door: it takes batches in every form
that ``open_door`` and ``open_shared_door`` read, and its layers see one flat row. A call with a cache, as ``generate``
makes, runs as transformers wrote it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.door.current import current_layout, laid_out
from hybrid_ft.hybrid_model.door.layout import Door, SequenceLayout, open_door
from hybrid_ft.hybrid_model.door.shared_prompts import open_shared_door, select_tokens
from hybrid_ft.hybrid_model.families.family import Family
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.layers import flat_attention
from hybrid_ft.hybrid_model.layers.adapter import disguised, is_mixer, segment_wise

_BOUNDS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def lay_flat(model: PreTrainedModel) -> PreTrainedModel:
    """Make a causal language model of a known family exact on packed batches and shared prompts, in place.

    Raises InputError for an architecture that is not known, for a multimodal model around a text model, and for one
    that transformers has built from a config it misreads.
    """
    family = family_of(model.config)
    base = model.base_model
    base_class: Any = type(base)
    if is_flat(model):
        return model
    if (fault := family.misread(model.config)) is not None:
        raise InputError(f"{type(model).__name__}: {fault}")
    if not hasattr(base, "layers"):
        raise InputError(
            f"{type(model).__name__} holds its text model beside others; open the text model alone, with "
            f"{family.architecture}.from_pretrained or hybrid_ft.load"
        )
    base.__class__ = _flat_model(base_class, family)
    for module in list(base.modules()):
        cls: Any = type(module)
        if isinstance(module, PreTrainedModel):
            continue
        if isinstance(module, GradientCheckpointingLayer):
            module.__class__ = _flat_layer(cls)
        elif (own := family.own.get(cls.__name__)) is not None:
            module.__class__ = own(cls)
        elif is_mixer(module):
            module.__class__ = segment_wise(cls, family.forks)
    model.set_attn_implementation(flat_attention.NAME)
    return model


def is_flat(model: nn.Module) -> bool:
    """Whether ``lay_flat`` has been here."""
    return getattr(type(getattr(model, "base_model", model)), "laid_flat", False)


@cache
def _flat_layer(cls: type[nn.Module]) -> type[nn.Module]:
    """A decoder layer that holds on to the layout it was called with, for when backward computes it again."""

    class FlatLayer(cls):  # type: ignore[misc, valid-type]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, layout=kwargs.pop("layout", current_layout()), **kwargs)

        def forward(self, *args: Any, layout: SequenceLayout | None = None, **kwargs: Any) -> Any:
            with laid_out(layout):
                return super().forward(*args, **kwargs)

    return disguised(FlatLayer, cls)


@cache
def _flat_model(cls: type[PreTrainedModel], family: Family) -> type[PreTrainedModel]:
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
            layout: SequenceLayout | None = None,
            prompt_lengths: torch.Tensor | None = None,
            prompt_rows: torch.Tensor | None = None,
            keep_positions: torch.Tensor | None = None,
            **kwargs: Any,
        ) -> Any:
            """Hidden states of a batch, in the form it was given in, zeros at padding.

            input_ids [B, T] or inputs_embeds [B, T, D]; attention_mask [B, T]. layout describes one row of tokens,
            [1, N], where documents may continue one another. prompt_lengths and prompt_rows, int64 [B], name the first
            tokens that rows share. keep_positions, bool [B, T]: hand back these places alone, [1, M, D], row by row.
            use_cache defaults to the config's, and to False in training; a cache holds rows of one document each.

            Raises ValueError for boundaries that contradict each other and for packed rows with a cache.
            """
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("pass exactly one of input_ids and inputs_embeds")
            given = input_ids if input_ids is not None else inputs_embeds
            assert given is not None
            shape = (given.shape[0], given.shape[1])
            return_dict = kwargs.pop("return_dict", None)
            bounds = {name: kwargs.pop(name, None) for name in _BOUNDS}
            for name in ("max_length_q", "max_length_k"):
                kwargs.pop(name, None)
            if use_cache is None:
                use_cache = self.config.use_cache and not self.training
            if past_key_values is not None and past_key_values.get_seq_length():
                return self._continue(
                    shape, past_key_values, input_ids=input_ids, inputs_embeds=inputs_embeds, use_cache=True,
                    attention_mask=attention_mask, position_ids=position_ids, return_dict=return_dict, **kwargs,
                )  # fmt: skip

            door: Door
            if layout is not None:
                if attention_mask is not None or past_key_values is not None:
                    raise ValueError("a layout stands for itself: no attention_mask and no cache beside it")
                if shape != (1, len(layout.positions)):
                    raise ValueError(
                        f"the layout is of {len(layout.positions)} tokens in one row; the batch is {shape}"
                    )
                layout = layout.to(given.device, non_blocking=True)
                door, use_cache = Door(layout, shape, None, len(layout.lengths) == 1), False
            elif prompt_rows is not None:
                if input_ids is None or prompt_lengths is None or past_key_values is not None:
                    raise ValueError("prompt_rows goes with input_ids and prompt_lengths, and with no cache")
                if position_ids is not None or any(of is not None for of in bounds.values()):
                    raise ValueError(
                        "rows that share prompts are one document each: pass no document bounds beside them"
                    )
                door, use_cache = self._shared_door(input_ids, prompt_lengths, prompt_rows, attention_mask), False
            else:
                door = open_door(
                    shape, given.device, attention_mask=attention_mask, position_ids=position_ids, **bounds
                )
                if not door.one_per_row:
                    if past_key_values is not None:
                        raise ValueError(
                            "packed rows cannot fill a cache: pass one document a row, or no past_key_values"
                        )
                    use_cache = False
            if (use_cache or past_key_values is not None) and keep_positions is None:
                return super().forward(
                    input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask,
                    position_ids=position_ids, use_cache=True, return_dict=return_dict,
                    **{CACHE: past_key_values}, **kwargs,
                )  # fmt: skip
            with laid_out(door.layout):
                outputs = super().forward(
                    input_ids=None if input_ids is None else door.flatten(input_ids).unsqueeze(0),
                    inputs_embeds=None if inputs_embeds is None else door.flatten(inputs_embeds).unsqueeze(0),
                    position_ids=door.layout.positions.unsqueeze(0),
                    use_cache=False,
                    return_dict=True,
                    **kwargs,
                )
            outputs = _out_of(door, outputs, keep_positions)
            return outputs.to_tuple() if return_dict is False else outputs

        def _shared_door(
            self,
            input_ids: torch.Tensor,
            prompt_lengths: torch.Tensor,
            prompt_rows: torch.Tensor,
            attention_mask: torch.Tensor | None,
        ) -> Door:
            """Prompts computed once; where the family cannot fork, every row whole."""
            shared = open_shared_door(input_ids, prompt_lengths, prompt_rows, attention_mask)
            if family.forks:
                return shared
            return open_door(tuple(input_ids.shape), input_ids.device, attention_mask=attention_mask)  # type: ignore[arg-type]

        def _continue(self, shape: tuple[int, int], past_key_values: Any, **inputs: Any) -> Any:
            """One call with a filled cache, as transformers computes it."""
            past = past_key_values.get_seq_length()
            if shape[1] > 1 and not family.continues:
                raise ValueError(
                    f"{family.name} cannot continue a cache with {shape[1]} tokens at once: transformers' scan starts "
                    "afresh; pass one token a row, or the whole row"
                )
            if inputs["position_ids"] is None and inputs["attention_mask"] is None:
                given = inputs["input_ids"] if inputs["input_ids"] is not None else inputs["inputs_embeds"]
                inputs["position_ids"] = torch.arange(past, past + shape[1], device=given.device).unsqueeze(0)
            return super().forward(**{CACHE: past_key_values}, **inputs)

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
