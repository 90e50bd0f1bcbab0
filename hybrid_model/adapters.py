"""LoRA on a hybrid: which layers, by name.

``q_proj`` or ``out_proj`` may exist in attention and in recurrent layers alike, so that a bare suffix would adapt both:
each set is a pattern over the whole module name, and its family's. Convolutions, decays, norms, routers, embeddings and
the head stay frozen, and so do projections with one output per head (30 in Olmo Hybrid 7B), at or below the usual
ranks, which steer what is kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.families.known import family_of

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

ALL_LINEAR, EXPERTS = "all-linear", "experts"


def target_modules(targets: str, config: PreTrainedConfig, layers: Sequence[int] | None = None) -> str:
    """The pattern PEFT matches against whole module names of a model of this config.

    layers: numbers from 0 of the layers to adapt, all of them if None.

    targets is all-linear, or sets joined by +: attention; the recurrent layers as delta (of delta rules) or recurrent;
    mlp; experts, whose parameters PEFT takes apart from modules. all-linear is every set but the experts.
    Raises InputError for a set that the family has not, with the reason where it is left out on purpose, and for a layer
    that the model has not.
    """
    names = list(_sets(config)) if targets == ALL_LINEAR else [name for name in targets.split("+") if name != EXPERTS]
    sets = {name: _set(name, config) for name in dict.fromkeys(names)}
    if EXPERTS in targets.split("+"):
        target_parameters(targets, config)
    if layers is None:
        return rf".*\.layers\.({'|'.join(sets.values())})" if sets else "(?!)"
    count = config.get_text_config().num_hidden_layers
    if beyond := [layer for layer in layers if layer >= count]:
        raise InputError(f"model.lora.layers: got {beyond[0]}; the model has layers 0 to {count - 1}")
    if EXPERTS in targets.split("+"):
        raise InputError(
            "model.lora.layers: PEFT adapts the experts of all layers; leave them out of model.lora.targets"
        )
    chosen = rf"(?=.*\.layers\.({'|'.join(map(str, layers))})\.)"
    return rf"{chosen}.*\.layers\.({'|'.join(sets.values())})"


def target_parameters(targets: str, config: PreTrainedConfig) -> list[str] | None:
    """Names of the routed experts' parameters where ``targets`` holds experts. Raises InputError for a model without."""
    if EXPERTS not in targets.split("+"):
        return None
    family = family_of(config)
    if not family.experts:
        raise InputError(f"model.lora.targets: {family.name} has no routed experts; {_choice(config)}")
    return list(family.experts)


def _sets(config: PreTrainedConfig) -> dict[str, str]:
    return family_of(config).lora(config)


def _set(name: str, config: PreTrainedConfig) -> str:
    sets, family = _sets(config), family_of(config)
    if name == "recurrent" and "delta" in sets:
        name = "delta"
    if name in sets:
        return sets[name]
    reasons = [reason for pattern, reason in family.refused.items() if re.search(pattern, name)]
    why = f": {reasons[0]}" if reasons else f" in {family.name}"
    raise InputError(f"model.lora.targets: {name!r} cannot be adapted{why}; {_choice(config)}")


def _choice(config: PreTrainedConfig) -> str:
    experts = (EXPERTS,) if family_of(config).experts else ()
    return f"use one of {', '.join((ALL_LINEAR, *_sets(config), *experts))}, or several joined by +"


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
    model: PreTrainedModel,
    targets: str = ALL_LINEAR,
    rank: int = 32,
    alpha: float = 64,
    dropout: float = 0.0,
    *,
    layers: Sequence[int] | None = None,
    rslora: bool = False,
    dora: bool = False,
) -> PeftModel:
    """The model with fresh adapters, everything else frozen; its output is unchanged until the first step.

    layers  numbers of the layers to adapt, all of them if None
    rslora  scale by alpha / sqrt(rank) instead of alpha / rank (2312.03732)
    dora    train the length of each row of the weight apart from its direction (2402.09353); not for experts
    """
    from peft import LoraConfig, get_peft_model

    experts: dict[str, Any] = {}
    if parameters := target_parameters(targets, model.config):
        if dora:
            raise InputError("model.lora.dora: got true; experts cannot have it, leave them out of model.lora.targets")
        experts = {"target_parameters": parameters}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=target_modules(targets, model.config, layers),
        use_rslora=rslora,
        use_dora=dora,
        bias="none",
        task_type="CAUSAL_LM",
        **experts,
    )
    with warnings.catch_warnings():
        # PEFT adds ranks for fused experts to a config that adapts none
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        return get_peft_model(model, config)
