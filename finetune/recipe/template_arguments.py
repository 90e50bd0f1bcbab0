"""Which arguments may be given to a chat template beside the messages."""

from __future__ import annotations

import json
from typing import Any

from hybrid_ft.errors import shown

TAKEN = frozenset(
    [
        "messages",
        "conversations",
        "tools",
        "documents",
        "add_generation_prompt",
        "continue_final_message",
        "chat_template",
        "return_assistant_tokens_mask",
        "tokenize",
    ]
)
"""Names that are given otherwise, or not at all."""


def refused_argument(name: str, value: Any) -> str | None:
    """Why a chat template cannot be given an argument, as what comes behind its name; None where it can."""
    if name in TAKEN or name.endswith("_token") or not name.isidentifier():
        return f"got {shown(value)}; a chat template has {name} from elsewhere, so leave it out"
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"got {shown(value)}; must be what JSON can hold: it is saved with the result"
    return None
