"""An answer that was judged alone: a conversation, and whether it was good."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.preference import Preference


@dataclass(slots=True)
class Judgement:
    """``conversation`` ends with the answer that was judged; ``good``: whether more like it is wanted, or less.
    ``noticed`` is as in Conversation."""

    conversation: Conversation
    good: bool
    noticed: dict[str, int] = field(default_factory=dict)

    def asked(self) -> str:
        """Equal for rows that ask the same first."""
        return self.conversation.asked()

    def whole(self) -> str:
        """Equal for rows that are the same."""
        return json.dumps([self.conversation.whole(), self.good])

    def opposite(self) -> str:
        """Equal to ``whole`` of the row that judges the same answer the other way."""
        return Judgement(self.conversation, not self.good).whole()

    def fields(self) -> set[str]:
        """Message fields that only some chat templates write."""
        return self.conversation.fields()

    @property
    def unused(self) -> set[str]:
        """Message fields that were left out."""
        return self.conversation.unused

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the row gives its chat template beside the messages."""
        return self.conversation.template_arguments

    @template_arguments.setter
    def template_arguments(self, given: dict[str, Any]) -> None:
        self.conversation.template_arguments = given


def taken_apart(pair: Preference) -> tuple[Judgement, Judgement]:
    """A pair's chosen answer, which is good, and its rejected one."""
    chosen, rejected = pair.sides()
    return Judgement(chosen, True, pair.noticed), Judgement(rejected, False)
