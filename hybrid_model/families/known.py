"""The families that are known, and the family of a config."""

from __future__ import annotations

from typing import Any

from hybrid_ft.errors import InputError, did_you_mean
from hybrid_ft.hybrid_model.families import (
    falcon_h1,
    granite_hybrid,
    kimi,
    lfm,
    mamba_mixes,
    nemotron_h,
    olmo,
)
from hybrid_ft.hybrid_model.families.family import Family
from hybrid_ft.hybrid_model.families.nemotron_flash import family as nemotron_flash
from hybrid_ft.hybrid_model.families.olmo_hybrid import family as olmo_hybrid
from hybrid_ft.hybrid_model.families.qwen import family as qwen
from hybrid_ft.hybrid_model.families.samba import family as samba

FAMILIES: tuple[Family, ...] = (
    olmo_hybrid.FAMILY,
    *qwen.FAMILIES,
    olmo.FAMILY,
    nemotron_h.FAMILY,
    *lfm.FAMILIES,
    granite_hybrid.FAMILY,
    falcon_h1.FAMILY,
    *kimi.FAMILIES,
    *mamba_mixes.FAMILIES,
    nemotron_flash.FAMILY,
    samba.FAMILY,
)
_BY_TYPE = {kind: family for family in FAMILIES for kind in (*family.model_types, *family.frames)}


def is_known(model_type: Any) -> bool:
    """Whether a config's ``model_type`` is a family's."""
    return isinstance(model_type, str) and model_type in _BY_TYPE


def family_of_type(model_type: Any, source: str = "config") -> Family:
    """The family of a config's ``model_type``. Raises InputError with the list and the nearest for one not known."""
    family = _BY_TYPE.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        near = did_you_mean(str(model_type), _BY_TYPE)
        raise InputError(
            f"{source}: model_type is {str(model_type)[:60]!r}; must be one of {', '.join(sorted(_BY_TYPE))}{near}"
        )
    return family


def family_of(config: Any) -> Family:
    """The family of a loaded config. Raises InputError for an architecture that is not known."""
    return family_of_type(getattr(config, "model_type", None))
