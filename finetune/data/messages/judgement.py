"""An answer that was judged alone: a conversation, and whether it was good."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from hybrid_ft.finetune.data.messages.conversation import Conversation


@dataclass(slots=True)
class Judgement:
    """``conversation`` ends with the answer that was judged; ``good``: whether more like it is wanted, or less."""

    conversation: Conversation
    good: bool

    def asked(self) -> str:
        """Equal for rows that ask the same first."""
        return self.conversation.asked()

    def whole(self) -> str:
        """Equal for rows that are the same."""
        return json.dumps([self.conversation.whole(), self.good])

    def fields(self) -> set[str]:
        """Message fields that only some chat templates write."""
        return self.conversation.fields()


@dataclass(slots=True)
class JudgedRow:
    """The judged answers of one row, one or the two of a pair; ``unused``: message fields that were left out."""

    answers: list[Judgement]
    unused: set[str] = field(default_factory=set)
