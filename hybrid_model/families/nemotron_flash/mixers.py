"""Nemotron-Flash's mixers and MLP on torch alone, as the released code computes them.

delta rule  q, k, v = silu(conv(x W)), beta = sigmoid(x W_b), no decay; q and k of length 1, heads' outputs normed
Mamba-2     transformers' own mixer, one group
attention   grouped keys; queries and keys normed by head where kq_norm is rms
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bamba.configuration_bamba import BambaConfig
from transformers.models.bamba.modeling_bamba import BambaMixer
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule

from hybrid_ft.hybrid_model.families.nemotron_flash.config import NemotronFlashConfig

_EPS = 1e-5  # of the norms inside the recurrent mixers, whatever the config's
_QK_EPS = 1e-6
_CONV = 4


def _short_conv(channels: int) -> nn.Conv1d:
    return nn.Conv1d(channels, channels, _CONV, groups=channels, padding=_CONV - 1, bias=False)


class NemotronFlashDeltaNet(nn.Module):
    """The delta rule without decay; heads of hidden size / heads."""

    def __init__(self, config: NemotronFlashConfig, layer_idx: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer_idx, self.num_heads, self.head_dim = layer_idx, config.num_attention_heads, 0
        self.head_dim = size // self.num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(size, size, bias=False) for _ in range(3))
        self.b_proj = nn.Linear(size, self.num_heads, bias=False)
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (_short_conv(size) for _ in range(3))
        self.o_norm = LlamaRMSNorm(self.head_dim, eps=_EPS)
        self.o_proj = nn.Linear(size, size, bias=False)

    def convolution(self) -> torch.Tensor:
        """Weights [3 D, W] of queries, keys and values, one below the other."""
        return torch.cat([conv.weight.squeeze(1) for conv in (self.q_conv1d, self.k_conv1d, self.v_conv1d)])

    def projected(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [..., D] to queries, keys and values side by side [..., 3 D], and beta [..., heads]."""
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1), self.b_proj(x).sigmoid()

    def forward(
        self, hidden_states: torch.Tensor, cache_params: Any = None, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, T, D]; attention_mask [B, T] of a call without a past."""
        length, weight = hidden_states.shape[1], self.convolution()
        if attention_mask is not None:
            hidden_states = hidden_states * attention_mask[..., None].to(hidden_states.dtype)
        qkv, beta = self.projected(hidden_states)
        if attention_mask is not None:
            beta = beta * attention_mask[..., None].to(beta.dtype)
        x, state = qkv.transpose(1, 2), None
        if cache_params is not None:
            if cache_params.has_previous_state(self.layer_idx):
                state = cache_params.layers[self.layer_idx].recurrent_states[0]
            x = cache_params.update_conv_state(x, self.layer_idx, conv_kernel_size=_CONV)
        convolved = F.conv1d(F.pad(x, (_CONV - 1, 0)), weight.unsqueeze(1), groups=len(weight))[..., -length:]
        q, k, v = F.silu(convolved).transpose(1, 2).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        rule = torch_recurrent_gated_delta_rule if state is not None and length == 1 else torch_chunk_gated_delta_rule
        o, state = rule(
            q, k, v, torch.zeros_like(beta), beta, initial_state=state, output_final_state=cache_params is not None,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip
        if cache_params is not None:
            cache_params.update_recurrent_state(state, self.layer_idx)
        return self.o_proj(self.o_norm(o).flatten(2).to(hidden_states.dtype))


class NemotronFlashMamba2(BambaMixer):
    """Mamba-2 of one group; its convolution has a bias, and its norm comes after the gate."""

    def __init__(self, config: NemotronFlashConfig, layer_idx: int) -> None:
        sizes = BambaConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            mamba_n_heads=config.mamba_expand * config.hidden_size // config.mamba2_headdim,
            mamba_d_head=config.mamba2_headdim,
            mamba_n_groups=1,
            mamba_d_state=config.mamba_d_state,
            mamba_d_conv=config.mamba_d_conv,
            mamba_expand=config.mamba_expand,
            mamba_chunk_size=128,
            rms_norm_eps=_EPS,
        )
        super().__init__(sizes, layer_idx)


class NemotronFlashAttention(nn.Module):
    """Attention to a document's tokens and those before it, all of them or the last ``window``."""

    def __init__(self, config: NemotronFlashConfig, layer_idx: int) -> None:
        super().__init__()
        assert config.num_key_value_heads is not None
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        (self.head_dim, value_dim), kv_heads = config.heads(), config.num_key_value_heads
        self.num_key_value_groups, self.scaling = config.num_attention_heads // kv_heads, self.head_dim**-0.5
        self.attention_dropout, self.window = config.attention_dropout, config.window(layer_idx)
        size, heads = config.hidden_size, config.num_attention_heads
        self.q_proj = nn.Linear(size, heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(size, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(size, kv_heads * value_dim, bias=False)
        self.o_proj = nn.Linear(heads * value_dim, size, bias=False)
        normed = config.kq_norm == "rms"
        self.q_norm = LlamaRMSNorm(self.head_dim, eps=_QK_EPS) if normed else nn.Identity()
        self.k_norm = LlamaRMSNorm(self.head_dim, eps=_QK_EPS) if normed else nn.Identity()
        self.value_dim = value_dim

    def forward(
        self,
        hidden_states: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor] | None,
        attention_mask: torch.Tensor | None,
        past_key_values: Any = None,
    ) -> torch.Tensor:
        """[B, T, D]; attention_mask bool [B, 1, T, S] of what each query sees, None where a layout says it."""
        q = self.q_norm(self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim))).transpose(1, 2)
        v = self.v_proj(hidden_states).unflatten(-1, (-1, self.value_dim)).transpose(1, 2)
        if rope is not None:
            q, k = apply_rotary_pos_emb(q, k, *rope)
        q, k = q.to(v.dtype), k.to(v.dtype)  # float32 under autocast, by the norms' weights
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, ALL_ATTENTION_FUNCTIONS["sdpa"]
        )
        o, _ = attend(
            self, q, k, v, attention_mask, dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling, sliding_window=self.window,
        )  # fmt: skip
        return self.o_proj(o.flatten(2))


class NemotronFlashMLP(nn.Module):
    """down(silu(gate) up), or down(relu(up)^2)."""

    def __init__(self, config: NemotronFlashConfig) -> None:
        super().__init__()
        size, width = config.hidden_size, config.mlp_size()
        self.act_fn = ACT2FN[config.mlp_hidden_act]
        self.gate_proj = nn.Linear(size, width, bias=False) if config.mlp_hidden_act == "silu" else None
        self.up_proj = nn.Linear(size, width, bias=False)
        self.down_proj = nn.Linear(width, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
