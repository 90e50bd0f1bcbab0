"""Mamba-1 by this project's scan, on flat segments that begin afresh.

    x, z    = W_in h;  x = silu(conv(x));  dt, B, C = W_x x  (each normed in Jamba);  dt = softplus(W_dt dt + bias)
    y       = W_out (scan(x, dt, -exp(A_log), B, C, D) silu(z))

A segment cannot continue another: transformers' scan, which is what a result runs on elsewhere, does not start from a
given state.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.layers.adapter import disguised, segment_wise
from hybrid_ft.hybrid_model.layers.watched import weights_of
from hybrid_ft.kernels.selective_scan import selective_scan
from hybrid_ft.kernels.short_conv import short_conv


def mamba1(cls: type[nn.Module]) -> type[nn.Module]:
    """A mixer's class with a forward that takes [1, N, D] of the current layout; without one it is transformers'.

    On a GPU, and with another activation than SiLU, segments are computed by transformers' own scan.
    """
    theirs: Any = cls
    by_segment: Any = segment_wise(theirs, False)
    return _mamba1(by_segment)


@cache
def _mamba1(cls: type[nn.Module]) -> type[nn.Module]:
    class Mamba1(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            layout = current_layout()
            silu = self.activation in ("silu", "swish")
            if layout is None or len(layout.levels) > 1 or not silu or hidden_states.is_cuda:
                return super().forward(hidden_states, *args, **kwargs)
            x, gate = self.in_proj(hidden_states.squeeze(0)).chunk(2, dim=-1)
            with weights_of(self.conv1d, self.dt_proj):
                x, _ = short_conv(x, self.conv1d.weight.squeeze(1), self.conv1d.bias, cu_seqlens=layout.cu_seqlens)
                sizes = [self.time_step_rank, self.ssm_state_size, self.ssm_state_size]
                dt, B, C = self.x_proj(x).split(sizes, dim=-1)
                if hasattr(self, "dt_layernorm"):
                    dt, B, C = self.dt_layernorm(dt), self.b_layernorm(B), self.c_layernorm(C)
                # added in float32, as transformers does
                dt = F.softplus((dt @ self.dt_proj.weight.T.to(dt.dtype)).float() + self.dt_proj.bias.float())
            A = -torch.exp(self.A_log.float())
            y = selective_scan(x, dt, A, B, C, self.D.float(), cu_seqlens=layout.cu_seqlens)
            return self.out_proj((y * F.silu(gate)).to(hidden_states.dtype)).unsqueeze(0)

    return disguised(Mamba1, cls)
