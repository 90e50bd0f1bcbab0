"""LoRA on a hybrid: which layers, by name.

``q_proj`` or ``out_proj`` may exist in attention and in recurrent layers alike, so that a bare suffix would adapt both:
each set is a pattern over the whole module name, and its family's. Convolutions, decays, norms, routers, embeddings and
the head stay frozen, and so do projections with one output per head (30 in Olmo Hybrid 7B), at or below the usual
ranks, which steer what is kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError, short
from hybrid_ft.hybrid_model.families.family import is_scorer
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.named_modules import (
    EMBEDDING,
    HEAD,
    adapted_pattern,
    has_experts,
    weights_of,
    whole_modules,
)

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel

ALL_LINEAR, EXPERTS = "all-linear", "experts"
FROM_THE_BASE = ("pissa", "pissa_niter_4", "pissa_niter_16", "olora")
"""Starts that take the adapter's first product out of the base's weights."""

_NONE = "(?!)"
_OF_PEFT = (".base_layer", ".lora_", ".token_adapter", ".original_module", ".modules_to_save")


def target_modules(
    targets: str,
    config: PreTrainedConfig,
    layers: Sequence[int] | None = None,
    modules: Sequence[str] | None = None,
) -> str:
    """The pattern PEFT matches against whole module names of a model of this config.

    layers   numbers from 0 of the layers to adapt, all of them if None
    modules  names or patterns of modules in place of ``targets``, as ``named_modules`` reads them

    targets is all-linear, or sets joined by +: attention; the recurrent layers as delta (of delta rules) or recurrent;
    mlp; experts, whose parameters PEFT takes apart from modules. all-linear is every set but the experts. Raises
    InputError for a set that the family or this model has not, with the reason where it is left out on purpose, for a
    layer that the model has not, and for layers that hold nothing of it.
    """
    names = list(_sets(config)) if targets == ALL_LINEAR else [name for name in targets.split("+") if name != EXPERTS]
    sets = {name: _set(name, config) for name in dict.fromkeys(names)}
    if targets != ALL_LINEAR:
        _refuse_absent(sets, config)
    if EXPERTS in targets.split("+"):
        target_parameters(targets, config)
    chosen = rf".*\.layers\.({'|'.join(sets.values())})" if sets else _NONE
    if modules is not None:
        chosen = adapted_pattern(modules, config, list(sets.values()))
    if layers is None:
        return chosen
    count = config.get_text_config().num_hidden_layers
    if beyond := [layer for layer in layers if layer >= count]:
        raise InputError(f"model.lora.layers: got {beyond[0]}; the model has layers 0 to {count - 1}")
    if EXPERTS in targets.split("+"):
        raise InputError(
            "model.lora.layers: PEFT adapts the experts of all layers; leave them out of model.lora.targets"
        )
    within = rf"(?=.*\.layers\.({'|'.join(map(str, layers))})\.){chosen}"
    if not any(re.fullmatch(within, name) for name in weights_of(config)):
        what = f"model.lora.targets: {targets}" if modules is None else "model.lora.modules"
        raise InputError(f"model.lora.layers: got {short(str(list(layers)))}; none of them has what {what} names")
    return within


def target_parameters(targets: str, config: PreTrainedConfig) -> list[str] | None:
    """Names of the routed experts' parameters where ``targets`` holds experts. Raises InputError
    for a model without."""
    if EXPERTS not in targets.split("+"):
        return None
    family = family_of(config)
    if not has_experts(config):
        raise InputError(
            f"model.lora.targets: {'this model' if family.experts else family.name} has no routed experts; "
            f"{_choice(config)}"
        )
    return list(family.experts)


def _sets(config: PreTrainedConfig) -> dict[str, str]:
    return family_of(config).lora(config)


def _set(name: str, config: PreTrainedConfig) -> str:
    sets, family = _sets(config), family_of(config)
    if name == "recurrent" and name not in sets and "delta" in sets:
        name = "delta"
    if name in sets:
        return sets[name]
    reasons = [reason for pattern, reason in family.refused.items() if re.search(pattern, name)]
    why = f": {reasons[0]}" if reasons else f" in {family.name}"
    raise InputError(f"model.lora.targets: {name!r} cannot be adapted{why}; {_choice(config)}")


def _refuse_absent(sets: Mapping[str, str], config: PreTrainedConfig) -> None:
    """An architecture's model may lack a kind of its layers, as a Granite 4 without Mamba."""
    held = _held(config)
    for name, pattern in sets.items():
        if pattern not in held.values():
            raise InputError(f"model.lora.targets: {name!r} names no layer of this model; {_choice(config)}")


def _held(config: PreTrainedConfig) -> dict[str, str]:
    """The sets of which a model of this config has layers."""
    weights = weights_of(config)
    sets = {name: (pattern, re.compile(rf".*\.layers\.({pattern})")) for name, pattern in _sets(config).items()}
    return {name: text for name, (text, pattern) in sets.items() if any(map(pattern.fullmatch, weights))}


def _choice(config: PreTrainedConfig) -> str:
    experts = (EXPERTS,) if has_experts(config) else ()
    return f"use one of {', '.join((ALL_LINEAR, *_held(config), *experts))}, or several joined by +"


def adapted_names(model: PeftModel) -> list[str]:
    """The adapted layers as a list of names, each as short as tells them from all others: ``self_attn.q_proj``.
    Experts, whose parameters are adapted, are none.

    Servers read such a list where they do not read a pattern.
    """
    modules = {name for name, _ in model.get_base_model().named_modules()}
    wrapped = {name for name, module in model.get_base_model().named_modules() if hasattr(module, "parameter_name")}
    adapted = {name for name in modules - wrapped if f"{name}.base_layer" in modules and ".token_adapter" not in name}
    others = {name for name in modules - adapted if not any(part in name for part in _OF_PEFT)}
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
    modules: Sequence[str] | None = None,
    modules_to_save: Sequence[str] | None = None,
    init: str = "default",
    rslora: bool = False,
    dora: bool = False,
    token_rows: Sequence[int] = (),
) -> PeftModel:
    """The model with fresh adapters, everything else frozen; its output is unchanged until the first step.

    layers           numbers of the layers to adapt, all of them if None
    modules          names or patterns of what is adapted, in place of ``targets``
    modules_to_save  names or patterns of what is trained whole, in float32
    init             how A and B begin, by PEFT's names. Those of ``FROM_THE_BASE`` take B A out of the base's weights
    rslora           scale by alpha / sqrt(rank) instead of alpha / rank (2312.03732)
    dora             train the length of each row of the weight apart from its direction (2402.09353); not for experts
    token_rows       ids whose rows of the embedding, and of the head, are trained
    """
    from peft import LoraConfig, get_peft_model

    from hybrid_ft.hybrid_model.adapter_weights import keep_start, train_in_float32
    from hybrid_ft.hybrid_model.layers.lora_linear import add_by_one_product

    more: dict[str, Any] = {}
    if parameters := target_parameters(targets, model.config):
        if dora:
            raise InputError("model.lora.dora: got true; experts cannot have it, leave them out of model.lora.targets")
        if init != "default":
            raise InputError(
                f"model.lora.init: got {init}; experts cannot have it, leave them out of model.lora.targets"
            )
        more["target_parameters"] = parameters
    tied, pattern = bool(model.config.tie_word_embeddings), target_modules(targets, model.config, layers, modules)
    if init in FROM_THE_BASE:
        _refuse_wider(model, pattern, rank, init)
    if modules_to_save:
        more["modules_to_save"] = whole_modules(modules_to_save, model.config, pattern)
        _refuse_shared(model, more["modules_to_save"])
        more["ensure_weight_tying"] = tied and any(name.endswith(EMBEDDING) for name in more["modules_to_save"])
    whole = {name.rpartition(".")[2] for name in more.get("modules_to_save", ())}
    if rows := [name for name in ((EMBEDDING,) if tied else (EMBEDDING, HEAD)) if token_rows and name not in whole]:
        more["trainable_token_indices"] = {name: list(token_rows) for name in rows}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[] if pattern == _NONE else pattern,
        init_lora_weights=True if init == "default" else init,
        use_rslora=rslora,
        use_dora=dora,
        bias="none",
        task_type="SEQ_CLS" if is_scorer(model.config) else "CAUSAL_LM",  # PEFT trains the score's head whole
        **more,
    )
    with warnings.catch_warnings():
        # PEFT adds ranks for fused experts to a config that adapts none
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys did not match", RuntimeWarning)
        adapted = get_peft_model(model, config)
    train_in_float32(adapted)
    add_by_one_product(adapted)
    if init in FROM_THE_BASE:
        # a second adapter of this config, as TRL adds one, would take its own part out of the base
        adapted.peft_config["default"].init_lora_weights = True
        keep_start(adapted)
    return adapted


def _refuse_wider(model: PreTrainedModel, pattern: str, rank: int, init: str) -> None:
    """Factors of a weight are no more than its rows, or its columns."""
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and re.fullmatch(pattern, name) and min(weight.shape) < rank:
            raise InputError(
                f"model.lora.rank: got {rank}; model.lora.init {init} takes the factors from the weights, and that of "
                f"{name} is {list(weight.shape)}: at most {min(weight.shape)}"
            )


def _refuse_shared(model: PreTrainedModel, names: Sequence[str]) -> None:
    """A weight that several layers share would be trained in the first of them alone."""
    places: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(weight), []).append(name)
    for name in names:
        shared = places[id(model.get_submodule(name).weight)]
        if len(shared) > 1 and not name.endswith(EMBEDDING):
            raise InputError(f"model.lora.modules_to_save: {name} shares its weight with {shared[-1]}; leave it out")
