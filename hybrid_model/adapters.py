"""LoRA on a hybrid: which layers, by name.

``q_proj``, ``k_proj``, ``v_proj`` and ``o_proj`` exist in attention and in the delta layers, so that a bare suffix
would adapt both; each set here is a pattern over the whole module name. Convolutions, ``A_log``, ``dt_bias``, norms,
embeddings and the head stay frozen. So do the delta layers' ``a_proj`` and ``b_proj``, the decay's and the writing
strength's: they have one output per head (30 in Olmo Hybrid 7B), at or below the usual ranks, and steer what is kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError

if TYPE_CHECKING:
    from peft import PeftModel

    from hybrid_ft.hybrid_model.families.olmo_hybrid.model import OlmoHybridForCausalLM

_SETS = {
    "attention": r"self_attn\.(q|k|v|o)_proj",
    "delta": r"linear_attn\.(q|k|v|g|o)_proj",
    "mlp": r"mlp\.(gate|up|down)_proj",
}
ALL_LINEAR = "all-linear"


def target_modules(targets: str) -> str:
    """The pattern PEFT matches against whole module names. ``targets`` is all-linear or sets joined by +.

    Raises InputError for a name that is no set.
    """
    names = list(_SETS) if targets == ALL_LINEAR else targets.split("+")
    for name in names:
        if name not in _SETS:
            raise InputError(
                f"model.lora.targets: {name!r} cannot be adapted; use one of {ALL_LINEAR}, {', '.join(_SETS)}, "
                "or several joined by +"
            )
    return rf".*\.({'|'.join(_SETS[name] for name in dict.fromkeys(names))})"


def add_lora(
    model: OlmoHybridForCausalLM, targets: str = ALL_LINEAR, rank: int = 32, alpha: float = 64, dropout: float = 0.0
) -> PeftModel:
    """The model with fresh adapters, everything else frozen; its output is unchanged until the first step."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
