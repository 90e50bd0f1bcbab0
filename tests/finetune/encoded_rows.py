"""One row in tokens, and what of it is learned."""

from collections.abc import Callable
from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.template import ChatTemplate

Make = Callable[[str], ChatTemplate]

APART = {"line_ends_split_from_header", "merges_split_from_prompt"}
WEATHER = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}}


def one(conversation: Conversation, template: ChatTemplate, control: ControlTokens) -> Encoded:
    (row,) = encode([conversation], template, control)
    if isinstance(row, BadRow):
        raise row
    return row


def learned(row: Encoded, tokenizer: Any) -> list[str]:
    """The learned text of each turn."""
    return [tokenizer.decode(row.ids[first : last + 1]) for first, last in row.turns]
