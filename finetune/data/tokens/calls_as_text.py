"""Calls of tools in an answer's text where the template writes them itself."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.tokens.template import ChatTemplate

CALLS_AS_TEXT = "calls_as_text"
"""The key under which rows with them are counted."""
_MARKS = re.compile(
    r"<(tool_calls?|function_calls?)>\s*[^\s<].*?</\1>"  # Hermes, Qwen, Olmo
    r"|<(?:function|invoke)[ =][^<>]+>.*?</(?:function|invoke)>|<\|python_tag\|>|\[TOOL_CALLS\]\s*\S"  # Llama, Mistral
    r"|<tool_call>\s*<function=[^<>]+>|<｜tool▁calls?▁begin｜>|<\|tool_calls?_(?:begin|section_begin)\|>",
    re.DOTALL,
)


def calls_as_text(messages: Sequence[Mapping[str, Any]], untrained: Collection[int], template: ChatTemplate) -> int:
    """How many of the assistant's trained turns have a call in their text that the template would write from
    ``tool_calls``."""
    if not template.mentions("tool_calls"):
        return 0  # text is the only way there
    return sum(
        message["role"] == "assistant"
        and index not in untrained
        and ("<" in message["content"] or "[" in message["content"])
        and _MARKS.search(message["content"]) is not None
        for index, message in enumerate(messages)
    )
