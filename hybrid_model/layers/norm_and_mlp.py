"""transformers' norm and MLP with kernels that keep less for backward."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch.nn import functional as F
from transformers.models.olmo_hybrid import OlmoHybridConfig
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.layers.fused_linears import Joined
from hybrid_ft.kernels.rms_norm import add_rms_norm, rms_norm
from hybrid_ft.kernels.swiglu import swiglu


class OlmoHybridRMSNorm(hf.OlmoHybridRMSNorm):
    """On a GPU one kernel for the norm and the addition beside it."""

    @overload
    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor: ...

    @overload
    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor, *, of_sum: Literal[True]
    ) -> tuple[torch.Tensor, torch.Tensor]: ...

    def forward(
        self, hidden_states: torch.Tensor, residual: torch.Tensor | None = None, *, of_sum: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The norm, plus a residual where one is given. ``of_sum``: the sum with the residual, and the norm of that."""
        if of_sum:
            assert residual is not None
            return add_rms_norm(hidden_states, residual, self.weight, self.variance_epsilon)
        return rms_norm(hidden_states, self.weight, self.variance_epsilon, residual)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """The same for a token or a few, without gradients: one call, where ours makes seven."""
        # under autocast weights are float32 and x is not
        return F.rms_norm(x.to(self.weight.dtype), x.shape[-1:], self.weight, self.variance_epsilon).to(x.dtype)


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
