"""Modules named for LoRA: which may be adapted, which trained whole.

Names are ends of a module's path, ``self_attn.q_proj`` or ``layers.3.mlp.up_proj``, or regular expressions of one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybrid_ft.errors import InputError
from hybrid_ft.hybrid_model.checkpoint.text_model import tensor_shapes
from hybrid_ft.hybrid_model.families.known import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

EMBEDDING, HEAD = "embed_tokens", "lm_head"


def adapted_pattern(given: Sequence[str], config: PreTrainedConfig, sets: Sequence[str]) -> str:
    """A pattern of the whole names of the modules that ``given`` names; ``sets``: patterns, after ``layers.``, of those
    that may be.

    Raises InputError for an entry that names nothing, and for one that names something that cannot be adapted.
    """
    allowed = rf".*\.layers\.({'|'.join(sets)})"
    may_be = re.compile(allowed)
    shapes = weights_of(config)
    for entry in given:
        for name in _found("model.lora.modules", entry, shapes):
            if not may_be.fullmatch(name):
                reason = _reason(name, shapes[name], config)
                raise InputError(f"model.lora.modules: {entry!r} names {name}, which cannot be adapted: {reason}")
    # an entry may match what holds no weight as well, such as a whole MLP
    return rf"(?={allowed}$)(.*\.)?({'|'.join(f'(?:{entry})' for entry in given)})"


def whole_modules(given: Sequence[str], config: PreTrainedConfig, adapted: str) -> list[str]:
    """The full names of the modules that ``given`` names, to be trained whole beside those that ``adapted`` matches.

    Raises InputError for an entry that names nothing, a router, what is adapted, and a head that is the embedding.
    """
    key, shapes, names = "model.lora.modules_to_save", weights_of(config), list[str]()
    router, is_adapted = re.compile(family_of(config).router), re.compile(adapted)
    for entry in given:
        for name in _found(key, entry, shapes):
            if router.fullmatch(f"{name}.weight"):
                raise InputError(f"{key}: {entry!r} names {name}, a router, which stays as it was trained")
            if is_adapted.fullmatch(name):
                raise InputError(f"{key}: {entry!r} names {name}, which is adapted; it can be one of the two")
            if name == HEAD and config.tie_word_embeddings:
                raise InputError(
                    f"{key}: {entry!r} names {name}, which is the embedding in this model (tie_word_embeddings); name "
                    f"{EMBEDDING}, and both are trained"
                )
            names.append(name)
    return list(dict.fromkeys(names))


def weights_of(config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """Modules that hold a weight of their own, and its shape."""
    ending = ".weight"
    return {name.removesuffix(ending): shape for name, shape in tensor_shapes(config).items() if name.endswith(ending)}


def has_experts(config: PreTrainedConfig) -> bool:
    """Whether a model of this config has routed experts that can be adapted."""
    experts = tuple(f".{name}" for name in family_of(config).experts)
    return bool(experts) and any(name.endswith(experts) for name in tensor_shapes(config))


def _found(key: str, entry: str, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    pattern = re.compile(rf"(.*\.)?(?:{entry})")
    if found := [name for name in shapes if pattern.fullmatch(name)]:
        return found
    some = ", ".join(dict.fromkeys(re.sub(r".*\.\d+\.", "", name) for name in shapes))
    raise InputError(f"{key}: {entry!r} names no module with a weight; such are {some}")


def _reason(name: str, shape: tuple[int, ...], config: PreTrainedConfig) -> str:
    for pattern, reason in family_of(config).refused.items():
        if re.search(pattern, name):
            return reason
    if name == HEAD or name.endswith(EMBEDDING):
        return "head and embedding are not layers of the model; train them whole with model.lora.modules_to_save"
    if len(shape) != 2:
        return "it is not a matrix; train it whole with model.lora.modules_to_save"
    return f"it is in no set of {family_of(config).name}"
