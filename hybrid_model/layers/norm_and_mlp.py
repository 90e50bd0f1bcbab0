"""transformers' norms and MLP with kernels that keep less for backward."""

from __future__ import annotations

from functools import cache
from typing import Literal, overload

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.models.olmo_hybrid import modeling_olmo_hybrid as hf

from hybrid_ft.hybrid_model.layers.adapter import disguised
from hybrid_ft.hybrid_model.layers.projections import projections
from hybrid_ft.hybrid_model.layers.watched import is_watched
from hybrid_ft.kernels.gated_rms_norm import gated_rms_norm
from hybrid_ft.kernels.rms_norm import add_rms_norm, rms_norm
from hybrid_ft.kernels.swiglu import swiglu

_SILU = type(ACT2FN["silu"])


class OlmoHybridRMSNorm(hf.OlmoHybridRMSNorm):
    """The norm of [..., D] over D; on a GPU one kernel for it and the addition beside it."""

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
        x, eps = hidden_states, self.variance_epsilon
        if not torch.is_grad_enabled() and x.ndim == 3 and x.shape[1] == 1:
            # a token a row, as in decoding: one call, where ours makes seven
            if of_sum:
                assert residual is not None
                x = residual + x
                return x, _norm_of_few(x, self.weight, eps)
            x = _norm_of_few(x, self.weight, eps)
            return x if residual is None else residual + x
        if of_sum:
            assert residual is not None
            return add_rms_norm(x, residual, self.weight, eps)
        return rms_norm(x, self.weight, eps, residual)


def _norm_of_few(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """torch's own, which wants one dtype: under autocast weights are float32 and x is not."""
    return F.rms_norm(x.to(weight.dtype), x.shape[-1:], weight, eps).to(x.dtype)


def plus_norm(residual: torch.Tensor, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """residual + norm(x), together where nobody watches the norm."""
    return residual + norm(x) if is_watched(norm, OlmoHybridRMSNorm) else norm(x, residual)


def norm_of_sum(residual: torch.Tensor, norm: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum residual + x, and its norm."""
    if is_watched(norm, OlmoHybridRMSNorm):
        x = residual + x
        return x, norm(x)
    total, normed = norm(x, residual, of_sum=True)
    return total, normed


class OlmoHybridRMSNormGated(hf.OlmoHybridRMSNormGated):
    """norm(x) silu(gate) over the last dimension."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor, *, few: bool = False) -> torch.Tensor:
        """Both [..., V]. ``few``: a token or a few without gradients, in fewer calls."""
        if few:
            normed = _norm_of_few(hidden_states, self.weight, self.variance_epsilon)
            return swiglu(gate, normed)
        return gated_rms_norm(hidden_states, gate, self.weight, eps=self.variance_epsilon)


def gated_norm(norm: nn.Module, x: torch.Tensor, gate: torch.Tensor, few: bool = False) -> torch.Tensor:
    """The norm of heads [..., HV, V]; who watches it sees them as transformers has them, one below the other."""
    if is_watched(norm, OlmoHybridRMSNormGated):
        return norm(x.flatten(0, -2), gate.flatten(0, -2)).view_as(x)
    return norm(x, gate, few=few)


class OlmoHybridMLP(hf.OlmoHybridMLP):
    """down(silu(gate) up), silu and product in one kernel; another activation as transformers has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # no names for gate and up: they would be kept while down runs
        if is_watched(self.act_fn, _SILU):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(swiglu(*projections(x, self.gate_proj, self.up_proj)))


@cache
def gated_mlp(cls: type[nn.Module]) -> type[nn.Module]:
    """Gate and product of another family's MLP in one kernel, where the gate is SiLU and nobody watches it."""

    class SwiGLU(cls):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if is_watched(self.act_fn, _SILU):
                return super().forward(x)
            return self.down_proj(swiglu(*projections(x, self.gate_proj, self.up_proj)))

    return disguised(SwiGLU, cls)


@cache
def plain_norm(cls: type[nn.Module]) -> type[nn.Module]:
    """Another family's norm whose weight is kept as it multiplies, rounded once as theirs is."""

    class PlainRMSNorm(cls):  # type: ignore[misc, valid-type]
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return rms_norm(hidden_states, self.weight, self.variance_epsilon)

    return disguised(PlainRMSNorm, cls)
