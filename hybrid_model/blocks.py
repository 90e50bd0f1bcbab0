"""transformers' norm and MLP with kernels that keep less for backward."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.joined import Joined
from hybrid_ft.kernels.rms_norm import rms_norm
from hybrid_ft.kernels.swiglu import swiglu


class OlmoHybridRMSNorm(hf.OlmoHybridRMSNorm):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The same for a token or a few, without gradients: one call, where ours makes seven."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)


class OlmoHybridMLP(hf.OlmoHybridMLP):
    """Raises ValueError for an activation other than SiLU."""

    def __init__(self, config: OlmoHybridConfig) -> None:
        if config.hidden_act != "silu":
            raise ValueError(f"hidden_act is {config.hidden_act!r}; the kernels know silu alone")
        super().__init__(config)
        self.joined = Joined()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The same for a token or a few, without gradients."""
        gate, up = self.joined(x, (self.gate_proj, self.up_proj)).chunk(2, dim=-1)
        return self.down_proj(swiglu(gate, up))
