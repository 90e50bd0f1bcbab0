"""Samba's published shapes by name, for training from nothing."""

from __future__ import annotations

from typing import Any

from hybrid_ft.hybrid_model.families.samba.config import SambaConfig

# 32,000 tokens, a window of 2,048, layers in turn and embeddings that are the head's, as in the paper's code
_SHAPES: dict[str, dict[str, Any]] = {
    "samba-421M": {"hidden_size": 1536, "num_hidden_layers": 12},
    "samba-1.3B": {"hidden_size": 2304, "num_hidden_layers": 18},
}
PRESETS = tuple(_SHAPES)


def preset_config(name: str) -> SambaConfig:
    """The config of a preset; KeyError for a name that is none."""
    return SambaConfig(**_SHAPES[name], max_position_embeddings=4096, tie_word_embeddings=True)
