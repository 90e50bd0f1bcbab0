"""Muon for the matrices of the layers, AdamW for everything else.

torch's own of both, at one learning rate: an update of Muon's is scaled to the size of AdamW's (2502.16982), so a rate and
a decay that were found for AdamW serve. A matrix keeps one moment for AdamW's two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


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
            one.step()


def muon_of(model: Any, **options: Any) -> MuonAdamW:
    """For a model's trained parameters; ``options`` are AdamW's.

    Muon's are the matrices of layers. Embedding and head, whose rows are tokens, convolutions, experts that are stacked
    in one tensor, and vectors are AdamW's; vectors get no weight decay, as in every run.
    """
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim == 2 and id(parameter) not in ends]
    rest = [parameter for parameter in trained if parameter.ndim != 2 or id(parameter) in ends]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in rest if parameter.ndim >= 2]},
        {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return MuonAdamW(matrices, groups, **options)


def _is_muons(group: dict[str, Any]) -> bool:
    return "ns_steps" in group
