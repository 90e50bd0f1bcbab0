"""Shapes by name: Olmo Hybrid's 7B, and smaller ones in its proportions.

Shapes by name. 7B is Olmo Hybrid's; the smaller ones keep its proportions: three delta layers to one of attention,
keys of 0.75 and values of 1.5 times the hidden size, no rope.
"""

from __future__ import annotations

from typing import Any

from transformers.models.olmo_hybrid import OlmoHybridConfig

TINY = "tiny"

# the tokens of the Olmo tokenizer, padded to a multiple of 64; ids of <|pad|> and <|endoftext|>
_OLMO_TOKENS = {"vocab_size": 100352, "pad_token_id": 100277, "eos_token_id": 100257}

_SHAPES: dict[str, dict[str, Any]] = {
    # the vocabulary and the end tokens are the bundled tokenizer's
    TINY: {
        "vocab_size": 1024,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "190M": {
        **_OLMO_TOKENS,
        "hidden_size": 640,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "max_position_embeddings": 8192,
    },
    "1B": {
        **_OLMO_TOKENS,
        "hidden_size": 1536,
        "intermediate_size": 4416,
        "num_hidden_layers": 20,
        "num_attention_heads": 12,
        "max_position_embeddings": 8192,
    },
    "7B": {
        **_OLMO_TOKENS,
        "hidden_size": 3840,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 30,
        "max_position_embeddings": 65536,
    },
}

PRESETS = tuple(_SHAPES)


def preset_config(name: str) -> OlmoHybridConfig:
    """The config of a preset; KeyError for a name that is none."""
    return OlmoHybridConfig(**_SHAPES[name], rope_parameters={"rope_theta": None})
