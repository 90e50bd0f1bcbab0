"""Qwen's mixers and norms by this project's kernels.

Of the mixers every Qwen has the same: the writing strength beta is in [0, 1], a key head serves HV / H consecutive
value heads, the gated norm is scaled by its weight. Qwen3-Next's joined projections are laid out by key head, Qwen3.5's
are flat and separate.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from hybrid_ft.hybrid_model.door.current import current_layout
from hybrid_ft.hybrid_model.layers.adapter import disguised, segment_wise
from hybrid_ft.hybrid_model.layers.delta_levels import delta_over_levels
from hybrid_ft.hybrid_model.layers.projections import projections
from hybrid_ft.hybrid_model.layers.watched import is_watched, weights_of
from hybrid_ft.kernels.delta_gates import delta_gates
from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm
from hybrid_ft.kernels.rms_norm import rms_norm


def project(mixer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [N, D] to q, k and v side by side [N, 2 H K + HV V], the gate z [N, HV, V], b and a [N, HV]."""
    N, H, HV = len(x), mixer.num_k_heads, mixer.num_v_heads
    K, V = mixer.head_k_dim, mixer.head_v_dim
    if not hasattr(mixer, "in_proj_qkvz"):
        qkv, z, b, a = projections(x, mixer.in_proj_qkv, mixer.in_proj_z, mixer.in_proj_b, mixer.in_proj_a)
        return qkv, z.view(N, HV, V), b, a
    values = HV // H * V
    qkvz, ba = projections(x, mixer.in_proj_qkvz, mixer.in_proj_ba)
    q, k, v, z = qkvz.view(N, H, -1).split([K, K, values, values], dim=-1)
    b, a = ba.view(N, H, -1).chunk(2, dim=-1)
    return torch.cat([part.flatten(1) for part in (q, k, v)], dim=-1), z.reshape(N, HV, V), b.flatten(1), a.flatten(1)


def gated_delta_net(cls: type[nn.Module]) -> type[nn.Module]:
    """transformers' mixer by this project's kernels, over the segments of a layout.

    With another activation of the convolution than SiLU, segments are computed by transformers' own.
    """
    theirs: Any = cls
    by_segment: Any = segment_wise(theirs, True)
    return _gated_delta_net(by_segment)


@cache
def _gated_delta_net(cls: type[nn.Module]) -> type[nn.Module]:

    class GatedDeltaNet(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            """[1, N, D] of the current layout; without one transformers' own."""
            layout = current_layout()
            if layout is None or self.activation != "silu":
                return super().forward(hidden_states, *args, **kwargs)
            qkv, z, b, a = project(self, hidden_states.squeeze(0))
            g, beta = delta_gates(a, b, self.A_log, self.dt_bias, allow_neg_eigval=False)
            with weights_of(self.conv1d):
                o = delta_over_levels(
                    qkv, g, beta, self.conv1d.weight.squeeze(1), layout, self.num_k_heads, self.head_k_dim
                )
            normed = _gated_norm(self.norm, o, z.view_as(o))
            return self.out_proj(normed.flatten(1)).unsqueeze(0)

    return disguised(GatedDeltaNet, cls)


def _gated_norm(norm: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The norm of heads [N, HV, V]; who watches it sees them one below the other, as transformers has them."""
    if is_watched(norm, type(norm)) or not type(norm).__name__.endswith("RMSNormGated"):
        return norm(x.flatten(0, 1), gate.flatten(0, 1)).view_as(x)
    return gated_rms_norm(x, gate, norm.weight, eps=norm.variance_epsilon)


@cache
def zero_centred_norm(cls: type[nn.Module]) -> type[nn.Module]:
    """A norm whose weight is kept as its distance from 1."""

    class ZeroCentredRMSNorm(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return rms_norm(x, 1.0 + self.weight.float(), self.eps)

    return disguised(ZeroCentredRMSNorm, cls)
