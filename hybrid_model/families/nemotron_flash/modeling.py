"""Nemotron-Flash as a model of transformers', under the released tensor names.

Written from what NVIDIA has published of it, on torch alone: its ports for serving and training, and its card. Two
things are unlike other models: learnt vectors stand before every document, and the head's logits are divided by the
length of each token's row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.utils.generic import can_return_tuple

from hybrid_ft.hybrid_model.door.cache_name import under_both_names
from hybrid_ft.hybrid_model.door.current import laid_out
from hybrid_ft.hybrid_model.families.nemotron_flash.config import NemotronFlashConfig
from hybrid_ft.hybrid_model.families.nemotron_flash.meta_tokens import with_meta_tokens
from hybrid_ft.hybrid_model.families.nemotron_flash.mixers import (
    NemotronFlashAttention,
    NemotronFlashDeltaNet,
    NemotronFlashMamba2,
    NemotronFlashMLP,
)
from hybrid_ft.hybrid_model.layers.own_language_model import OwnLanguageModel
from hybrid_ft.hybrid_model.layers.padded_rows import read_rows, rope_of


class NemotronFlashDecoderLayer(GradientCheckpointingLayer):
    """A mixer and an MLP, each behind its norm; an MLP alone in a layer of kind f."""

    def __init__(self, config: NemotronFlashConfig, layer_idx: int) -> None:
        super().__init__()
        kind, size, eps = config.kinds[layer_idx], config.hidden_size, config.rms_norm_eps
        self.kind = kind
        if kind == "a":
            self.self_attn = NemotronFlashAttention(config, layer_idx)
        elif kind == "deltanet":
            self.gla = NemotronFlashDeltaNet(config, layer_idx)
        elif kind != "f":
            self.mamba = NemotronFlashMamba2(config, layer_idx)
        if kind != "f":
            self.input_layernorm = LlamaRMSNorm(size, eps=eps)
        self.has_mlp = kind == "f" or config.intermediate_size > 0
        if self.has_mlp:
            self.ffn = NemotronFlashMLP(config)
            self.pre_ffn_layernorm = LlamaRMSNorm(size, eps=eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        masks: dict[Any, torch.Tensor | None],
        past_key_values: Any = None,
    ) -> torch.Tensor:
        """[B, T, D]; masks: of recurrent mixers under "recurrent", of attention under its window."""
        if self.kind != "f":
            x = self.input_layernorm(hidden_states)
            if self.kind == "a":
                mixed = self.self_attn(x, rope, masks.get(self.self_attn.window), past_key_values)
            else:
                mixer = self.gla if self.kind == "deltanet" else self.mamba
                mixed = mixer(x, cache_params=past_key_values, attention_mask=masks.get("recurrent"))
            hidden_states = hidden_states + mixed
        if self.has_mlp:
            hidden_states = hidden_states + self.ffn(self.pre_ffn_layernorm(hidden_states))
        return hidden_states


class NemotronFlashPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model's classes."""

    config_class = NemotronFlashConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["NemotronFlashDecoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NemotronFlashMamba2):
            module.init_bamba_weights()
            dt = torch.exp(torch.empty_like(module.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)))
            init.copy_(module.dt_bias, dt + torch.log(-torch.expm1(-dt)))
        elif isinstance(module, NemotronFlashModel) and module.config.num_memory_tokens:
            init.normal_(module.memory_tokens)


class NemotronFlashModel(NemotronFlashPreTrainedModel):
    """The layers, with meta tokens before every document."""

    def __init__(self, config: NemotronFlashConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(NemotronFlashDecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.final_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.empty(config.num_memory_tokens, config.hidden_size))
        self.gradient_checkpointing = False
        self.post_init()

    @under_both_names
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, D] of input_ids [B, T] or inputs_embeds [B, T, D].

        Each row is one document, padded where attention_mask [B, past + T] is 0; its positions are counted from that
        mask. Where a layout is current, the one row holds its segments.
        """
        count = self.config.num_memory_tokens
        rows = read_rows(self, input_ids, inputs_embeds, attention_mask, past_key_values, use_cache, before=count)
        own = with_meta_tokens(rows, self.memory_tokens) if count else None
        windows = {self.config.window(layer) for layer, kind in enumerate(self.config.kinds) if kind == "a"}
        masks: dict[Any, torch.Tensor | None] = {window: rows.seen(window) for window in windows}
        masks["recurrent"] = rows.padding()
        hidden = rows.hidden
        rope = self._rope(hidden, rows.positions())
        seen = []
        with laid_out(rows.layout):
            for layer in self.layers:
                seen.append(hidden)
                hidden = layer(hidden, rope, masks, rows.cache)
        seen.append(self.final_layernorm(hidden))
        shown = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return rows.outputs(seen, shown, own) if own else rows.outputs(seen, shown)

    def _rope(self, hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """cos and sin [B, T, head size] in the hidden states' dtype."""
        config = self.config
        if not config.rope:
            return None
        size, base = config.heads()[0], float(config.rope_theta)
        if config.rope_type == "ntk":
            longer = config.max_position_embeddings / config.orig_max_position_embeddings
            base *= (2 * longer - 1) ** (size / (size - 2))
        return rope_of(positions, size, base, hidden.dtype)


class NemotronFlashForCausalLM(OwnLanguageModel, NemotronFlashPreTrainedModel, GenerationMixin):
    """The layers and a head whose rows have length 1."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: NemotronFlashConfig) -> None:
        super().__init__(config)
        self.model = NemotronFlashModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().logits_of(hidden) / self.lm_head.weight.norm(dim=1)

    def __setattr__(self, name: str, value: Any) -> None:
        # TRL puts its fused head in forward's place: hidden states times the weight as it stands
        function = getattr(value, "__func__", value)
        if name == "forward" and getattr(function, "__globals__", {}).get("__name__", "").startswith("trl."):
            value = _without_fused_head(value)
        super().__setattr__(name, value)


def _without_fused_head(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checked(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            raise ValueError(
                "Nemotron-Flash divides its logits by the length of each row of the head, which TRL's fused head does not "
                "know; train it by hybrid-ft's commands"
            )
        return forward(*args, **kwargs)

    return checked


AutoConfig.register("nemotron_flash", NemotronFlashConfig, exist_ok=True)
AutoModel.register(NemotronFlashConfig, NemotronFlashModel, exist_ok=True)
AutoModelForCausalLM.register(NemotronFlashConfig, NemotronFlashForCausalLM, exist_ok=True)
