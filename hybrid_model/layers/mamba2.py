"""Mamba-2 on the delta rule's kernels, on flat segments with forks.

    S_t = exp(dt A) S_{t-1} + dt B x^T,   y = C^T S_t + D x

is the gated delta rule with queries C, keys B, values x, log-decay dt A and beta = dt, but for what that rule takes off
before it writes, beta (k k^T) S: its correction is left out.

One class serves the mixers of Granite 4 H, Falcon-H1, Nemotron-H, Bamba and Zamba2: in transformers they are one
forward, but for Falcon's multipliers and its norm, which may be none.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.layers.adapter import disguised, segment_wise
from hybrid_ft.hybrid_model.layers.delta_levels import over_levels
from hybrid_ft.hybrid_model.layers.heads import Heads
from hybrid_ft.hybrid_model.layers.mamba2_step import is_step, step
from hybrid_ft.kernels.gated_delta_rule import gated_delta_rule
from hybrid_ft.kernels.short_conv import short_conv


def mamba2(cls: type[nn.Module]) -> type[nn.Module]:
    """A mixer's class with a forward that takes [1, N, D] of the current layout; without one it is transformers', but
    for a cached step whose time step has a lower bound.

    In float16, and with another activation than SiLU, segments are computed by transformers' own scan.
    """
    theirs: Any = cls
    by_segment: Any = segment_wise(theirs, True)
    return _mamba2(by_segment)


@cache
def _mamba2(cls: type[nn.Module]) -> type[nn.Module]:
    class Mamba2(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            layout = current_layout()
            cache = kwargs.get("cache_params")
            if layout is None and self.activation == "silu" and is_step(self, hidden_states, cache):
                gate, x, dt = self._projected(hidden_states.squeeze(1))
                return self._out(step(self, x, dt, cache), gate, hidden_states.dtype).unsqueeze(1)
            if layout is None or self.activation != "silu" or _is_half(hidden_states):
                return super().forward(hidden_states, *args, **kwargs)
            gate, x, dt = self._projected(hidden_states.squeeze(0))
            dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(*self.time_step_limit)
            widths = [self.intermediate_size, *[self.n_groups * self.ssm_state_size] * 2]
            heads, by_groups = Heads.of_groups(layout, self.num_heads, self.n_groups), (1, 2)
            weight, bias = heads.own_joined(self.conv1d.weight.squeeze(1), widths, by_groups), self.conv1d.bias
            bias = None if bias is None else heads.own_joined(bias, widths, by_groups)
            x, D = heads.gather_joined(x, widths, by_groups), heads.own(self.D)
            g, dt = heads.gather(dt * -self.A_log.float().exp()), heads.gather(dt)
            widths = [g.shape[1] * self.head_dim, *[heads.count * self.ssm_state_size] * 2]

            def scan(parts: Any, level: Any, tail: Any, state: Any, more: bool) -> tuple[torch.Tensor, Any, Any]:
                x, g, dt = parts
                convolved, tail = short_conv(
                    x, weight, bias, cu_seqlens=level.cu_seqlens, initial_tail=tail, output_final_tail=more
                )
                v, k, q = convolved.split(widths, dim=-1)
                v = v.unflatten(-1, (-1, self.head_dim))
                k, q = (part.unflatten(-1, (-1, self.ssm_state_size)) for part in (k, q))
                o, state = gated_delta_rule(
                    q.unsqueeze(0),
                    k.unsqueeze(0),
                    v.unsqueeze(0),
                    g.unsqueeze(0),
                    dt.unsqueeze(0),
                    cu_seqlens=level.cu_seqlens,
                    initial_state=state,
                    output_final_state=more,
                    scale=1.0,
                    use_qk_l2norm=False,
                    correct=False,
                )
                return o.squeeze(0) + (D.float()[:, None] * v).to(o.dtype), tail, state

            o = heads.give_back(over_levels(layout, (x, g, dt), scan)).flatten(1)
            return self._out(o, gate, hidden_states.dtype).unsqueeze(0)

        def _out(self, o: torch.Tensor, gate: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
            normed = self.norm(o, gate) if getattr(self, "mamba_rms_norm", True) else o * F.silu(gate)
            return self.out_proj(normed.to(dtype))

        def _projected(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """x [N, D] to the gate, the convolution's inputs and the time steps, [N, ...] each."""
            if hasattr(self, "ssm_in_multiplier"):
                projected = self.in_proj(x * self.ssm_in_multiplier) * self.mup_vector.flatten()
            else:
                projected = self.in_proj(x)
            return projected.split([self.intermediate_size, self.conv_dim, self.num_heads], dim=-1)

    return disguised(Mamba2, cls)


def _is_half(x: torch.Tensor) -> bool:
    kind = x.device.type
    return torch.float16 in (x.dtype, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
