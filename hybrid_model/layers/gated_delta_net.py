"""The Gated DeltaNet layer on flat tokens.

    q, k, v = silu(conv(x W_q)), silu(conv(x W_k)), silu(conv(x W_v))
    g       = -exp(A_log) softplus(x W_a + dt_bias)
    beta    = 2 sigmoid(x W_b)                     (1 instead of 2 without negative eigenvalues)
    y       = norm(delta_rule(q, k, v, g, beta)) silu(x W_g) W_o

The norm's eps is 1e-5, whatever the config's: the released weights were trained with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.door.cache import DeltaMemory
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.door.rows import take_rows
from hybrid_ft.hybrid_model.layers.fused_linears import Joined
from hybrid_ft.kernels.delta_gates import delta_gates
from hybrid_ft.kernels.delta_step import delta_step
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm
from hybrid_ft.kernels.short_conv import short_conv
from hybrid_ft.kernels.swiglu import swiglu

Tails = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _join_convolutions(module: torch.nn.Module, state_dict: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
    """Let ``load_state_dict`` read the released names. Trainer resumes with strict=False and would skip them silently."""
    names = [f"{prefix}{part}_conv1d.weight" for part in "qkv"]
    if all(name in state_dict for name in names):
        state_dict[f"{prefix}conv1d.weight"] = torch.cat([state_dict.pop(name) for name in names])


class OlmoHybridGatedDeltaNet(hf.OlmoHybridGatedDeltaNet):
    """transformers' parameters, another forward."""

    def __init__(self, config: hf.OlmoHybridConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.widths = [self.key_dim, self.key_dim, self.value_dim]
        self.joined = Joined()
        self.register_load_state_dict_pre_hook(_join_convolutions)

    def forward(
        self, hidden_states: torch.Tensor, layout: SequenceLayout, memory: DeltaMemory | None = None
    ) -> torch.Tensor:
        """[N, D] -> [N, D]. With a memory the segments are the rows of a batch that it remembers."""
        q, k, v = self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)
        a, b = self.a_proj(hidden_states), self.b_proj(hidden_states)
        g, beta = delta_gates(a, b, self.A_log, self.dt_bias, allow_neg_eigval=self.allow_neg_eigval)
        tails: Tails | None = None
        state = None
        if memory is not None and memory.tail is not None:
            tails, state = memory.tail.split(self.widths, dim=-1), memory.state
        outputs = []
        sizes = [sum(level.lengths) for level in layout.levels]
        pieces = zip(*(x.split(sizes) for x in (q, k, v, g, beta)))
        for i, (level, piece) in enumerate(zip(layout.levels, pieces)):
            if level.parents is not None:
                assert tails is not None and state is not None
                q_tail, k_tail, v_tail = (take_rows(tail, level.parents) for tail in tails)
                tails, state = (q_tail, k_tail, v_tail), take_rows(state, level.parents)
            continued = memory is not None or i + 1 < len(layout.levels)
            o, tails, state = self._mix(piece, level.cu_seqlens, tails, state, continued)
            outputs.append(o)
        if memory is not None:
            assert tails is not None and state is not None
            memory.store(torch.cat(tails, dim=-1), state)
        o = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        gate = self.g_proj(hidden_states).view_as(o)
        normed = gated_rms_norm(o, gate, self.o_norm.weight, eps=self.o_norm.variance_epsilon)
        return self.o_proj(normed.flatten(1))

    def _mix(
        self,
        inputs: tuple[torch.Tensor, ...],
        cu_seqlens: torch.Tensor,
        tails: Tails | None,
        state: torch.Tensor | None,
        output_final: bool,
    ) -> tuple[torch.Tensor, Tails | None, torch.Tensor | None]:
        """Convolutions and delta rule over the segments of one level.

        inputs are its q, k, v, g and beta. Returns o [N, HV, V], the final tails and the final state.
        """
        *projected, g, beta = inputs
        weights = self.conv1d.weight.squeeze(1).split(self.widths)
        convolved = [
            short_conv(x, weight, cu_seqlens=cu_seqlens, initial_tail=tail, output_final_tail=output_final)
            for x, weight, tail in zip(projected, weights, tails or (None, None, None))
        ]
        (q, q_tail), (k, k_tail), (v, v_tail) = convolved
        o, final_state = gated_delta_rule(
            q.unflatten(-1, (self.num_k_heads, self.head_k_dim)).unsqueeze(0),
            k.unflatten(-1, (self.num_k_heads, self.head_k_dim)).unsqueeze(0),
            v.unflatten(-1, (self.num_v_heads, self.head_v_dim)).unsqueeze(0),
            g.unsqueeze(0),
            beta.unsqueeze(0),
            cu_seqlens=cu_seqlens,
            initial_state=state,
            output_final_state=output_final,
        )
        if q_tail is None or k_tail is None or v_tail is None:
            return o.squeeze(0), None, None
        return o.squeeze(0), (q_tail, k_tail, v_tail), final_state

    def step(self, hidden_states: torch.Tensor, memory: DeltaMemory) -> torch.Tensor:
        """One token of every row, [B, D] -> [B, D], continuing from the memory and written to it. No gradients."""
        assert memory.tail is not None and memory.state is not None
        layers = (self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.a_proj, self.b_proj)
        x, gate, a, b = self.joined(hidden_states, layers).split(
            [self.conv_dim, self.value_dim, self.num_v_heads, self.num_v_heads], dim=-1
        )
        o, tail, state = delta_step(
            x, a, b, memory.tail, memory.state, self.conv1d.weight.squeeze(1), self.A_log, self.dt_bias,
            allow_neg_eigval=self.allow_neg_eigval,
        )  # fmt: skip
        memory.store(tail, state)
        weight = self.o_norm.weight
        # under autocast weights are float32 and o is not
        normed = F.rms_norm(o.to(weight.dtype), (self.head_v_dim,), weight, self.o_norm.variance_epsilon)
        return self.o_proj(swiglu(gate, normed.flatten(1).to(o.dtype)))
