"""Olmo Hybrid with its layers laid flat: transformers' configuration and parameter names, one door for every batch.

The classes bear transformers' names, so that what goes by a class's name (the config's ``architectures``, FSDP's
wrapping, device maps) sees the model it knows.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf
from transformers.utils.generic import ModelOutput, can_return_tuple

from hybrid_ft.hybrid_model.door.cache import AttentionMemory, DeltaMemory, adopt
from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.door.cached_call import Turn, first_turn, later_turn, step_turn
from hybrid_ft.hybrid_model.door.layout import Door, SequenceLayout, open_door
from hybrid_ft.hybrid_model.door.shared_prompts import open_shared_door, pick
from hybrid_ft.hybrid_model.families.olmo_hybrid.decoder_layers import (
    OlmoHybridAttentionDecoderLayer,
    OlmoHybridLinearAttentionDecoderLayer,
)
from hybrid_ft.hybrid_model.families.olmo_hybrid.names import released_state_dict
from hybrid_ft.hybrid_model.layers.attention import Rope
from hybrid_ft.hybrid_model.layers.norm_and_mlp import OlmoHybridRMSNorm

# transformers converts a checkpoint's tensor names for classes of its own only, unless the mapping is registered
register_checkpoint_conversion_mapping("olmo_hybrid", get_checkpoint_conversion_mapping("olmo_hybrid"), overwrite=True)


class OlmoHybridModel(hf.OlmoHybridModel):
    def __init__(self, config: OlmoHybridConfig) -> None:
        hf.OlmoHybridPreTrainedModel.__init__(self, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            OlmoHybridLinearAttentionDecoderLayer(config, i)
            if kind == "linear_attention"
            else OlmoHybridAttentionDecoderLayer(config, i)
            for i, kind in enumerate(config.layer_types)
        )
        self.norm = OlmoHybridRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        rope = config.rope_parameters
        self.rotary_emb = hf.OlmoHybridRotaryEmbedding(config) if rope and rope.get("rope_theta") else None
        self.gradient_checkpointing = False
        self.post_init()

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
        cu_seq_lens_q: torch.Tensor | None = None,
        cu_seq_lens_k: torch.Tensor | None = None,
        seq_idx: torch.Tensor | None = None,
        layout: SequenceLayout | None = None,
        prompt_lengths: torch.Tensor | None = None,
        prompt_rows: torch.Tensor | None = None,
        keep: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch in any of the forms ``open_door`` reads, in that same form, zeros at padding.

        input_ids [B, T] or inputs_embeds [B, T, D]. attention_mask is [B, T], or [B, past + T] with a filled cache.
        layout describes one row of tokens, [1, N], where documents may continue one another; no mask then.
        prompt_lengths and prompt_rows, int64 [B], name the first tokens that rows share: they are computed once, as
        ``open_shared_door`` says. keep, bool [B, T]: hand back these places alone, [1, M, D], row by row.
        use_cache defaults to the config's, and to False in training. A cache holds rows of one document each.

        Raises ValueError for boundaries that contradict each other, a mask with a hole, packed rows with a cache, and
        attention weights, which are never formed.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if output_attentions or (output_attentions is None and self.config.output_attentions):
            raise ValueError("output_attentions is not available: attention weights are never formed")
        given = input_ids if input_ids is not None else inputs_embeds
        assert given is not None
        shape = (given.shape[0], given.shape[1])
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if self.training and self.layers[0].gradient_checkpointing:
            use_cache, past_key_values = False, None
        boundaries = {
            "position_ids": position_ids,
            "cu_seq_lens_q": cu_seq_lens_q,
            "cu_seq_lens_k": cu_seq_lens_k,
            "seq_idx": seq_idx,
        }
        layers = None if past_key_values is None else adopt(past_key_values, self.config.layer_types)
        turn: Turn | None = None
        door: Door | None
        if layout is not None:
            if attention_mask is not None or past_key_values is not None:
                raise ValueError("a layout stands for itself: no attention_mask and no cache beside it")
            if shape != (1, len(layout.positions)):
                raise ValueError(f"the layout is of {len(layout.positions)} tokens in one row; the batch is {shape}")
            door, use_cache = Door(layout, shape, None, len(layout.lengths) == 1), False
        elif prompt_rows is not None:
            if input_ids is None or prompt_lengths is None or past_key_values is not None:
                raise ValueError("prompt_rows goes with input_ids and prompt_lengths, and with no cache")
            if any(bounds is not None for bounds in boundaries.values()):
                raise ValueError("rows that share prompts are one document each: pass no document bounds beside them")
            door, use_cache = open_shared_door(input_ids, prompt_lengths, prompt_rows, attention_mask), False
        elif layers is not None and _attention_memory(layers).length:
            turn = later_turn(_attention_memory(layers), shape, given.device, attention_mask, boundaries)
            door, use_cache = turn.door, True
        else:
            door = open_door(shape, given.device, attention_mask=attention_mask, **boundaries)
            if not door.one_per_row:
                if past_key_values is not None:
                    raise ValueError("packed rows cannot fill a cache: pass one document a row, or no past_key_values")
                use_cache = False
            if use_cache or past_key_values is not None:
                if past_key_values is None:
                    past_key_values = DynamicCache()
                    layers = adopt(past_key_values, self.config.layer_types)
                turn = first_turn(door, given.device)
                use_cache = True
        memories: list[Any] = layers if use_cache and layers is not None else [None] * len(self.layers)
        assert door is not None
        if inputs_embeds is not None:
            hidden = door.flatten(inputs_embeds)
        else:
            # three dimensions here, because NEFTune's hook counts on them
            hidden = self.embed_tokens(door.flatten(cast(torch.Tensor, input_ids)).unsqueeze(0)).squeeze(0)
        return self._run(
            hidden, door, turn, memories, past_key_values if use_cache else None, keep, output_hidden_states
        )

    def _run(
        self,
        hidden: torch.Tensor,
        door: Door,
        turn: Turn | None,
        memories: list[Any],
        past_key_values: Cache | None,
        keep: torch.Tensor | None,
        output_hidden_states: bool | None,
    ) -> BaseModelOutputWithPast:
        """Through the layers and out of the door. ``hidden`` is [N, D]."""
        layout = door.layout
        rope = self._rope(hidden, layout.positions if turn is None else turn.positions())
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        seen = [door.unflatten(hidden)] if output_hidden_states else None
        for layer, memory in zip(self.layers, memories):
            hidden = layer(hidden, layout=layout, rope=rope, memory=memory, turn=turn)
            if seen is not None:
                seen.append(door.unflatten(hidden))
        if keep is not None:
            hidden = self.norm(pick(door, hidden, keep)).unsqueeze(0)
        else:
            hidden = door.unflatten(self.norm(hidden))
        if seen is not None:
            seen[-1] = hidden
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            hidden_states=None if seen is None else tuple(seen),
            **{CACHE: past_key_values},
        )

    def _rope(self, hidden: torch.Tensor, positions: torch.Tensor) -> Rope | None:
        """cos and sin, both [N, head size]."""
        if self.rotary_emb is None:
            return None
        cos, sin = self.rotary_emb(hidden, positions.unsqueeze(0))
        return cos.squeeze(0), sin.squeeze(0)

    def step(
        self, input_ids: torch.Tensor, past_key_values: Cache, attention_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """One token of every row, [B, 1] -> [B, D], past the door; None where it takes more than that."""
        layers = adopt(past_key_values, self.config.layer_types)
        past = _attention_memory(layers)
        turn = step_turn(past, len(input_ids), attention_mask) if past.length else None
        if turn is None:
            return None
        hidden = self.embed_tokens(input_ids).squeeze(1)
        rope = None if self.rotary_emb is None else self._rope(hidden, turn.positions())
        for layer, memory in zip(cast(Any, self.layers), layers):
            if layer._forward_pre_hooks or layer._forward_hooks or "forward" in layer.__dict__:
                # sharding and offloading bring a layer's weights in when it is called
                hidden = layer(hidden, layout=None, rope=rope, memory=memory, turn=turn)
            else:
                hidden = layer.step(hidden, rope, memory, turn)
        return self.norm.step(hidden)


def _attention_memory(layers: list[AttentionMemory | DeltaMemory]) -> AttentionMemory:
    """The first one; they all know of the same columns."""
    return next(layer for layer in layers if isinstance(layer, AttentionMemory))


class OlmoHybridForCausalLM(hf.OlmoHybridForCausalLM):
    # both stand in an exponent, so that rounding them to bfloat16 moves the decay over a long document
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {"A_log", "dt_bias"}

    def __init__(self, config: OlmoHybridConfig) -> None:
        hf.OlmoHybridPreTrainedModel.__init__(self, config)
        self.model = OlmoHybridModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

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

        ``OlmoHybridModel.forward`` says what a batch may be. One token a row with a filled cache, as ``generate`` asks
        for, takes a path of its own where no gradient is wanted.
        """
        logits_only = labels is None and not kwargs.get("output_hidden_states", self.config.output_hidden_states)
        one_token = input_ids is not None and input_ids.shape[1] == 1 and not torch.is_grad_enabled()
        if logits_only and one_token and past_key_values is not None:
            assert input_ids is not None
            hidden = self.model.step(input_ids, past_key_values, attention_mask)
            if hidden is not None:
                logits = self.lm_head(hidden).unsqueeze(1)
                return CausalLMOutputWithPast(logits=logits, **{CACHE: past_key_values})
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE: past_key_values},
            **kwargs,
        )

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
        """transformers' own, without its detours where there is one new token a row: the step needs no positions."""
        if next_sequence_length != 1 or past_key_values is None or past_key_values.get_seq_length() == 0:
            return super().prepare_inputs_for_generation(
                input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, **kwargs
            )
        dropped = ("position_ids", "labels", "is_first_iteration")
        inputs = {name: value for name, value in kwargs.items() if name not in dropped}
        inputs.update({"input_ids": input_ids[:, -1:], CACHE: past_key_values, "attention_mask": attention_mask})
        return inputs

    def _update_model_kwargs_for_generation(
        self, outputs: ModelOutput, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own; positions are not carried along, because each row's are counted from its cache or mask."""
        model_kwargs.pop("position_ids", None)
        return super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """transformers' own, with the released checkpoint's tensor names whether the model was loaded or made anew."""
        state_dict = released_state_dict(self.state_dict() if state_dict is None else state_dict, self.config)
        kwargs["save_original_format"] = False
        super().save_pretrained(save_directory, is_main_process, state_dict, **kwargs)
