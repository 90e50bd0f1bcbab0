"""Muon for the matrices of the layers, AdamW for everything else.

torch's own of both, at one learning rate: an update of Muon's is scaled to the size of AdamW's (2502.16982), so a rate
and a decay that were found for AdamW serve. A matrix keeps one moment for AdamW's two.

torch's orthogonalizes in bfloat16, as is done on a GPU. Elsewhere it is done here in float32: without instructions for
bfloat16 a CPU multiplies in it 20 times as slowly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybrid_ft.finetune.runs.moments import muons_matrices


class MuonAdamW(torch.optim.Optimizer):
    """Both as one: their groups are its groups, their states its states.

    ``matrices``: parameters [n, m] of Muon's. ``others``: AdamW's groups. ``options``: AdamW's; the rate and the decay
    are Muon's too.
    """

    def __init__(self, matrices: list[nn.Parameter], others: list[dict[str, Any]], **options: Any) -> None:
        shared = {"lr": options["lr"], "weight_decay": options["weight_decay"]}
        self._muon = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **shared)
        self._adamw = torch.optim.AdamW(others, **options)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], shared)

    def state_names(self, parameter: Tensor) -> tuple[str, ...]:
        """Of the tensors that are kept of it."""
        muons = (one for group in self.param_groups if _is_muons(group) for one in group["params"])
        return ("momentum_buffer",) if any(one is parameter for one in muons) else ("exp_avg", "exp_avg_sq", "step")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for one in (self._muon, self._adamw):
            # states and groups are others after each load_state_dict
            one.state = self.state
            one.param_groups = [group for group in self.param_groups if _is_muons(group) == (one is self._muon)]
        groups = self._muon.param_groups
        if not any(weight.is_cuda for group in groups for weight in group["params"]):
            for group in groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        _update(weight, self.state[weight], group)
        else:
            self._muon.step()
        self._adamw.step()


def muon_of(model: Any, **options: Any) -> MuonAdamW:
    """For a model's trained parameters; ``options`` are AdamW's.

    Muon's are the matrices of layers. Embedding and head, whose rows are tokens, convolutions, experts that are stacked
    in one tensor, and vectors are AdamW's; vectors get no weight decay, as in every run.
    """
    matrices = muons_matrices(model)
    taken = set(map(id, matrices))
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in rest if parameter.ndim >= 2]},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return MuonAdamW(matrices, groups, **options)


def _is_muons(group: dict[str, Any]) -> bool:
    return "ns_steps" in group


def _update(weight: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """torch's step of one matrix [n, m], orthogonalized in the gradient's dtype, at least float32."""
    gradient, momentum, rate = weight.grad, group["momentum"], group["lr"]
    assert gradient is not None
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = torch.zeros_like(gradient)
    moment = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
    direction = _orthogonal(gradient.lerp(moment, momentum), group)
    weight.mul_(1 - rate * group["weight_decay"])
    weight.add_(direction, alpha=-rate * 0.2 * math.sqrt(max(weight.shape)))


def _orthogonal(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """[n, m] with its singular values near 1: Newton and Schulz's X <- a X + b (X X^T) X + c (X X^T)^2 X."""
    a, b, c = group["ns_coefficients"]
    upright = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    x = x.T if upright else x
    x = x / x.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if upright else x
