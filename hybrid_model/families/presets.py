"""Shapes by name, of all families that have some."""

from __future__ import annotations

from transformers import PreTrainedConfig

from hybrid_ft.hybrid_model.families.olmo_hybrid import presets as olmo_hybrid
from hybrid_ft.hybrid_model.families.samba import presets as samba

TINY = olmo_hybrid.TINY
PRESETS = (*olmo_hybrid.PRESETS, *samba.PRESETS)


def preset_config(name: str) -> PreTrainedConfig:
    """The config of a preset; KeyError for a name that is none."""
    return samba.preset_config(name) if name in samba.PRESETS else olmo_hybrid.preset_config(name)
