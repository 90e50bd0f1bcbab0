"""LoRA+ (2402.12354): B begins at zero and learns faster than A."""

from __future__ import annotations

from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer


def loraplus_optimizer(
    model: Any, kind: type[torch.optim.Optimizer], options: dict[str, Any], ratio: float, weight_decay: float
) -> torch.optim.Optimizer:
    """PEFT's optimizer of that ``kind``: A at the rate in ``options``, B and single vectors at ``ratio`` times it.

    Vectors (DoRA's lengths, norms) get no weight decay, as in every run.
    """
    rest = {name: value for name, value in options.items() if name != "lr"}
    optimizer = create_loraplus_optimizer(
        model, kind, lr=options["lr"], loraplus_lr_ratio=ratio, loraplus_weight_decay=weight_decay, **rest
    )
    groups = optimizer.param_groups
    optimizer.param_groups = []
    for group in groups:
        matrices = [parameter for parameter in group["params"] if parameter.ndim >= 2]
        vectors = [parameter for parameter in group["params"] if parameter.ndim < 2]
        for params, decay in ((matrices, group["weight_decay"]), (vectors, 0.0)):
            if params:
                optimizer.add_param_group(group | {"params": params, "weight_decay": decay})
    return optimizer
