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
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.door.cache import DeltaCache
from hybrid_ft.hybrid_model.door.layout import SequenceLayout
from hybrid_ft.hybrid_model.door.rows import take_rows
from hybrid_ft.hybrid_model.layers.heads import Heads
from hybrid_ft.hybrid_model.layers.norm_and_mlp import gated_norm
from hybrid_ft.hybrid_model.layers.projections import projections
from hybrid_ft.hybrid_model.layers.watched import weights_of
from hybrid_ft.kernels.delta_gates import delta_gates
from hybrid_ft.kernels.delta_step import delta_step
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.short_conv import short_conv

Tails = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class OlmoHybridGatedDeltaNet(hf.OlmoHybridGatedDeltaNet):
    """transformers' parameters, another forward."""

    @property
    def widths(self) -> list[int]:
        """Channels of q, k and v."""
        return [self.key_dim, self.key_dim, self.value_dim]

    def forward(
        self, hidden_states: torch.Tensor, layout: SequenceLayout | None, cache: DeltaCache | None = None
    ) -> torch.Tensor:
        """Hidden states in the layout's form to the same; without a layout a step, [B, 1, D].

        With a cache the segments are the rows of a batch that it remembers.
        """
        inputs = (self.q_proj, self.k_proj, self.v_proj, self.a_proj, self.b_proj)
        with weights_of(self.conv1d):
            if layout is None:
                assert cache is not None
                o = self._step([proj(hidden_states).squeeze(1) for proj in inputs], cache).unsqueeze(1)
            else:
                projected = [layout.flat(x) for x in projections(hidden_states, *inputs)]
                o = layout.formed(self._segments(projected, layout, cache))
        # the gate comes late: the rule runs without it in memory
        gate = self.g_proj(hidden_states).view_as(o)
        return self.o_proj(gated_norm(self.o_norm, o, gate, few=layout is None).flatten(2))

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        """Also the released names: Trainer resumes with strict=False, which would pass over them silently."""
        names = [f"{prefix}{part}_conv1d.weight" for part in "qkv"]
        if all(name in state_dict for name in names):
            state_dict[f"{prefix}conv1d.weight"] = torch.cat([state_dict.pop(name) for name in names])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _segments(
        self, projected: list[torch.Tensor], layout: SequenceLayout, cache: DeltaCache | None
    ) -> torch.Tensor:
        """From q, k, v, a and b, all [n, *], to the rule's result [n, HV, V], of the tokens that lie here."""
        q, k, v, a, b = projected
        g, beta = delta_gates(a, b, self.A_log, self.dt_bias, allow_neg_eigval=self.allow_neg_eigval)
        heads = Heads(layout, self.num_k_heads)
        q, k, v, g, beta = map(heads.gather, (q, k, v, g, beta))
        weights = [heads.own(weight) for weight in self.conv1d.weight.squeeze(1).split(self.widths)]
        tails: Tails | None = None
        state = None
        if cache is not None and cache.tail is not None:
            tails, state = cache.tail.split(self.widths, dim=-1), cache.state
        outputs = []
        sizes = [sum(level.lengths) for level in layout.levels]
        pieces = zip(*(x.split(sizes) for x in (q, k, v, g, beta)))
        for i, (level, piece) in enumerate(zip(layout.levels, pieces)):
            if level.parents is not None:
                assert tails is not None and state is not None
                q_tail, k_tail, v_tail = (take_rows(tail, level.parents) for tail in tails)
                tails, state = (q_tail, k_tail, v_tail), take_rows(state, level.parents)
            continued = cache is not None or i + 1 < len(layout.levels)
            o, tails, state = self._mix(piece, weights, level.cu_seqlens, tails, state, continued)
            outputs.append(o)
        if cache is not None:
            assert tails is not None and state is not None
            cache.store(torch.cat(tails, dim=-1), state)
        return heads.give_back(outputs[0] if len(outputs) == 1 else torch.cat(outputs))

    def _mix(
        self,
        inputs: tuple[torch.Tensor, ...],
        weights: list[torch.Tensor],
        cu_seqlens: torch.Tensor,
        tails: Tails | None,
        state: torch.Tensor | None,
        output_final: bool,
    ) -> tuple[torch.Tensor, Tails | None, torch.Tensor | None]:
        """Convolutions and delta rule over the segments of one level.

        inputs are its q, k, v, g and beta; weights those of the convolutions. Returns o [N, HV, V], the final tails and
        the final state."""
        *projected, g, beta = inputs
        convolved = [
            short_conv(x, weight, cu_seqlens=cu_seqlens, initial_tail=tail, output_final_tail=output_final)
            for x, weight, tail in zip(projected, weights, tails or (None, None, None))
        ]
        (q, q_tail), (k, k_tail), (v, v_tail) = convolved
        o, final_state = gated_delta_rule(
            q.unflatten(-1, (-1, self.head_k_dim)).unsqueeze(0),
            k.unflatten(-1, (-1, self.head_k_dim)).unsqueeze(0),
            v.unflatten(-1, (-1, self.head_v_dim)).unsqueeze(0),
            g.unsqueeze(0),
            beta.unsqueeze(0),
            cu_seqlens=cu_seqlens,
            initial_state=state,
            output_final_state=output_final,
        )
        if q_tail is None or k_tail is None or v_tail is None:
            return o.squeeze(0), None, None
        return o.squeeze(0), (q_tail, k_tail, v_tail), final_state

    def _step(self, projected: list[torch.Tensor], cache: DeltaCache) -> torch.Tensor:
        """The same for one token of every row, [B, *] to [B, HV, V], written to the cache. No gradients."""
        assert cache.tail is not None and cache.state is not None
        q, k, v, a, b = projected
        o, tail, state = delta_step(
            torch.cat((q, k, v), dim=-1), a, b, cache.tail, cache.state, self.conv1d.weight.squeeze(1), self.A_log,
            self.dt_bias, allow_neg_eigval=self.allow_neg_eigval,
        )  # fmt: skip
        cache.store(tail, state)
        return o
