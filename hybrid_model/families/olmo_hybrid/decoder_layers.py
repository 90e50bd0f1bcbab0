"""The two kinds of decoder layer on flat tokens. ``step`` is one token of every row that a cache remembers."""

from __future__ import annotations

import torch
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.door.cache import AttentionMemory, DeltaMemory
from hybrid_ft.hybrid_model.door.cached_call import Turn
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.layers.attention import OlmoHybridAttention, Rope
from hybrid_ft.hybrid_model.layers.gated_delta_net import OlmoHybridGatedDeltaNet
from hybrid_ft.hybrid_model.layers.norm_and_mlp import OlmoHybridMLP, OlmoHybridRMSNorm


class OlmoHybridAttentionDecoderLayer(hf.OlmoHybridAttentionDecoderLayer):
    """Norms stand after attention and MLP."""

    def __init__(self, config: OlmoHybridConfig, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = OlmoHybridAttention(config, layer_idx)
        self.mlp = OlmoHybridMLP(config)
        self.post_attention_layernorm = OlmoHybridRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_feedforward_layernorm = OlmoHybridRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | None,
        rope: Rope | None,
        memory: AttentionMemory | None = None,
        turn: Turn | None = None,
    ) -> torch.Tensor:
        """[N, D] -> [N, D]; without a layout a step."""
        if layout is None:
            assert memory is not None and turn is not None
            return self.step(hidden_states, rope, memory, turn)
        mixed = self.self_attn(hidden_states, layout, rope, memory, turn)
        hidden_states = self.post_attention_layernorm(mixed, hidden_states)
        return self.post_feedforward_layernorm(self.mlp(hidden_states), hidden_states)

    def step(self, hidden_states: torch.Tensor, rope: Rope | None, memory: AttentionMemory, turn: Turn) -> torch.Tensor:
        """[B, D] -> [B, D]."""
        mixed = self.self_attn.step(hidden_states, rope, memory, turn)
        hidden_states = hidden_states + self.post_attention_layernorm.step(mixed)
        return hidden_states + self.post_feedforward_layernorm.step(self.mlp.step(hidden_states))


class OlmoHybridLinearAttentionDecoderLayer(hf.OlmoHybridLinearAttentionDecoderLayer):
    """Norms stand before delta rule and MLP."""

    def __init__(self, config: OlmoHybridConfig, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        self.mlp = OlmoHybridMLP(config)
        self.input_layernorm = OlmoHybridRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = OlmoHybridRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.linear_attn = OlmoHybridGatedDeltaNet(config, layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        layout: SequenceLayout | None,
        rope: Rope | None,
        memory: DeltaMemory | None = None,
        turn: Turn | None = None,
    ) -> torch.Tensor:
        """[N, D] -> [N, D]; without a layout a step."""
        if layout is None:
            assert memory is not None and turn is not None
            return self.step(hidden_states, rope, memory, turn)
        mixed = self.linear_attn(self.input_layernorm(hidden_states), layout, memory)
        hidden_states, normed = self.post_attention_layernorm(mixed, hidden_states, of_sum=True)
        return hidden_states + self.mlp(normed)

    def step(self, hidden_states: torch.Tensor, rope: Rope | None, memory: DeltaMemory, turn: Turn) -> torch.Tensor:
        """[B, D] -> [B, D]."""
        hidden_states = hidden_states + self.linear_attn.step(self.input_layernorm.step(hidden_states), memory)
        return hidden_states + self.mlp.step(self.post_attention_layernorm.step(hidden_states))
