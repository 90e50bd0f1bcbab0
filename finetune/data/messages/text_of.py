"""All that a converted row says, as one text."""

from __future__ import annotations

from typing import Any

from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.messages.preference import Preference


def text_of(row: Any) -> str:
    """All text of a converted row."""
    if isinstance(row, PlainText):
        return row.text
    if isinstance(row, Preference):
        turns = [*row.prompt, row.chosen, row.rejected]
    else:
        turns = (row.conversation if isinstance(row, Judgement) else row).messages
    return "\n".join(str(turn["content"]) for turn in turns)
