"""Optimizers that a recipe names and transformers does not have."""

from __future__ import annotations

from typing import Any

from hybrid_ft.finetune.training.adamw_bf16 import AdamWBF16
from hybrid_ft.finetune.training.muon import muon_of


def own_optimizer(name: str, args: Any) -> tuple[Any, dict[str, Any]] | None:
    """Class, or what transformers calls a factory, and its options. ``args``: transformers' of a training.

    None for AdamW, which transformers makes. It gives each group of a class its weight decay.
    """
    options = {
        "lr": args.learning_rate,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    if name == "adamw_bf16":
        return AdamWBF16, options | {"seed": args.seed}
    if name == "muon":
        fused = args.optim == "adamw_torch_fused"
        return (lambda: muon_of), options | {"weight_decay": args.weight_decay, "fused": fused}
    return None
