"""One cached token of a Mamba-2 mixer, with the bound of its time step.

transformers' own step leaves the bound out, so that what is decoded there differs from a forward by up to 5e-4.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F


def is_step(mixer: Any, x: torch.Tensor, cache: Any) -> bool:
    """Whether x [B, T, D] is one token of each row, continues a state, and its time step has a lower bound."""
    if cache is None or x.shape[1] != 1 or not mixer.time_step_limit[0] > 0:
        return False
    return _state(mixer, cache) is not None


def _state(mixer: Any, cache: Any) -> torch.Tensor | None:
    """[B, H, P, N], or None where no token has been read. Not by the cache's own method, which transformers 5.20
    lacks."""
    layer = cache.layers[mixer.layer_idx]
    return layer.recurrent_states[0] if layer.has_previous_state[0] else None


def step(mixer: Any, inputs: torch.Tensor, dt: torch.Tensor, cache: Any) -> torch.Tensor:
    """Outputs [B, H P] before the gate of what is projected: inputs [B, H P + 2 G N] of the convolution, dt [B, H].

    The cache's last inputs [B, H P + 2 G N, W] and state [B, H, P, N] move on in place.
    """
    heads, groups, size = mixer.num_heads, mixer.n_groups, mixer.ssm_state_size
    kernel = mixer.conv_kernel_size
    window = cache.update_conv_state(inputs.unsqueeze(-1), mixer.layer_idx, conv_kernel_size=kernel)[..., -kernel:]
    convolved = (window * mixer.conv1d.weight.squeeze(1)).sum(-1)
    if mixer.conv1d.bias is not None:
        convolved = convolved + mixer.conv1d.bias
    x, B, C = F.silu(convolved).float().split([mixer.intermediate_size, groups * size, groups * size], dim=-1)
    x = x.unflatten(-1, (heads, -1))
    B, C = (part.unflatten(-1, (groups, size)).repeat_interleave(heads // groups, dim=1) for part in (B, C))
    dt = F.softplus(dt.float() + mixer.dt_bias.float()).clamp(*mixer.time_step_limit)
    decay = torch.exp(dt * -torch.exp(mixer.A_log.float()))
    before = _state(mixer, cache)
    assert before is not None
    state = before.float() * decay[..., None, None] + (dt[..., None] * x)[..., None] * B.unsqueeze(2)
    cache.update_recurrent_state(state, layer_idx=mixer.layer_idx)
    y = (state * C.unsqueeze(2)).sum(-1) + mixer.D.float()[:, None] * x
    return y.flatten(1).to(inputs.dtype)
