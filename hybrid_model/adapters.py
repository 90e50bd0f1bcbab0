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


def adapted_names(model: PeftModel) -> list[str]:
    """The adapted layers as a list of names, each as short as tells them from all others: ``self_attn.q_proj``.

    Servers read such a list where they do not read a pattern.
    """
    modules = {name for name, _ in model.get_base_model().named_modules()}
    adapted = {name for name in modules if f"{name}.base_layer" in modules}
    others = {name for name in modules - adapted if not any(part in name for part in (".base_layer", ".lora_"))}
    by_last: dict[str, list[str]] = {}
    for name in others:
        by_last.setdefault(name.rpartition(".")[2], []).append(name)
    found = set()
    for name in adapted:
        parts = name.split(".")
        suffixes = [".".join(parts[-size:]) for size in range(1, len(parts) + 1)]
        alike = by_last.get(parts[-1], [])
        found.add(next(suffix for suffix in suffixes if not any(f".{other}".endswith(f".{suffix}") for other in alike)))
    return sorted(found)


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
