"""Samba as a model of transformers', under the tensor names of the ``fla`` package.

Mamba and attention with a window in turn, an MLP behind each. Ren et al., "Samba: Simple Hybrid State Space Models for
Efficient Unlimited Context Language Modeling" (arXiv 2406.07522).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.utils.generic import can_return_tuple

from hybrid_ft.hybrid_model.door.cache_name import CACHE, under_both_names
from hybrid_ft.hybrid_model.families.samba.config import SambaConfig
from hybrid_ft.hybrid_model.layers.own_language_model import OwnLanguageModel
from hybrid_ft.hybrid_model.layers.padded_rows import read_rows, rope_of


class SambaMLP(nn.Module):
    """down(silu(gate) up)."""

    def __init__(self, config: SambaConfig) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, config.mlp_size, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SambaAttention(MistralAttention):
    """transformers' attention with a window."""


class SambaMixer(MambaMixer):
    """transformers' Mamba-1."""


class SambaBlock(GradientCheckpointingLayer):
    """A mixer and an MLP, each behind its norm."""

    def __init__(self, config: SambaConfig, layer_idx: int) -> None:
        super().__init__()
        self.recurrent = config.layer_types[layer_idx] == "linear_attention"
        self.mixer_norm = LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mixer: Any = SambaMixer(config, layer_idx) if self.recurrent else SambaAttention(config, layer_idx)
        self.mlp_norm = LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = SambaMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        real: torch.Tensor | None,
        past_key_values: Any = None,
    ) -> torch.Tensor:
        """[B, T, D]; mask bool [B, 1, T, S] of what a query sees, real [B, T] of tokens; None where
        a layout says it."""
        x = self.mixer_norm(hidden_states)
        if self.recurrent:
            mixed = self.mixer(x, cache_params=past_key_values, attention_mask=real)
        else:
            mixed, _ = self.mixer(
                hidden_states=x, position_embeddings=rope, attention_mask=mask, **{CACHE: past_key_values}
            )
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class SambaPreTrainedModel(PreTrainedModel):
    """What transformers asks of a model's classes."""

    config_class = SambaConfig
    base_model_prefix = "backbone"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["SambaBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _is_stateful = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SambaMixer):
            module.init_mamba_weights()


class SambaModel(SambaPreTrainedModel):
    """The layers."""

    def __init__(self, config: SambaConfig) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SambaBlock(config, i) for i in range(config.num_hidden_layers))
        self.norm_f = LlamaRMSNorm(config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.embeddings = value

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
        rows = read_rows(self, input_ids, inputs_embeds, attention_mask, past_key_values, use_cache)
        hidden, mask, padding = rows.hidden, rows.seen(self.config.sliding_window), rows.padding()
        theta = float(self.config.attn["rope_theta"])
        rope = rope_of(rows.positions(), self.config.head_dim, theta, hidden.dtype)
        seen = []
        for layer in self.layers:
            seen.append(hidden)
            hidden = layer(hidden, rope, mask, padding, rows.cache)
        seen.append(self.norm_f(hidden))
        return rows.outputs(
            seen, self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )


class SambaForCausalLM(OwnLanguageModel, SambaPreTrainedModel, GenerationMixin):
    """The layers and a head."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "backbone.embeddings.weight"}

    def __init__(self, config: SambaConfig) -> None:
        super().__init__(config)
        self.backbone = SambaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.embeddings

    def set_input_embeddings(self, value: Any) -> None:
        self.backbone.embeddings = value


AutoConfig.register("samba", SambaConfig, exist_ok=True)
AutoModel.register(SambaConfig, SambaModel, exist_ok=True)
AutoModelForCausalLM.register(SambaConfig, SambaForCausalLM, exist_ok=True)
