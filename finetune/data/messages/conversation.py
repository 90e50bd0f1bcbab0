"""A conversation, the one shape behind all sources, and its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.finetune.data.messages.calls import settled
from hybrid_ft.finetune.data.messages.noticed import WEIGHTED
from hybrid_ft.finetune.data.messages.training_marks import Weights
from hybrid_ft.finetune.data.sources.rows import BadRow

NOTHING_TO_LEARN = "nothing to learn"
NO_ANSWER, OPEN_END = "no assistant turn", "ends on a {} turn"
PASSED_ON = ("name", "tool_call_id")  # for templates that print them


@dataclass(slots=True)
class Conversation:
    """Messages as a chat template takes them.

    Every message has ``role`` (one of ROLES' values) and ``content`` (text, "" beside calls). It may have
    ``tool_calls`` (a list of ``{"type": "function", "function": {"name", "arguments": {...}}}``), the released Olmo
    templates' ready-made ``function_calls`` and ``functions`` (text), ``reasoning_content``, ``name`` and
    ``tool_call_id``. ``tools`` is None where there are none. ``unused`` names the message fields that were left out,
    ``weights`` those in the loss of the assistant's messages, by index, that have other ones than 1; ``noticed`` counts
    what was come upon, by the keys of ``noticed.NOTES``; ``template_arguments`` are what the row gives its chat
    template beside the messages.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    unused: set[str] = field(default_factory=set)
    weights: dict[int, Weights] = field(default_factory=dict)
    noticed: dict[str, int] = field(default_factory=dict)
    template_arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def untrained(self) -> set[int]:
        """The assistant's messages, by index, that are there to be read and not to be learned."""
        return {index for index, weights in self.weights.items() if not any(weight for _, weight in weights)}

    def asked(self) -> str:
        """The users' turns before the first answer, white space folded: equal for rows that ask the same first."""
        asked: list[str] = []
        for message in self.messages:
            if message["role"] == "assistant" and asked:
                break
            if message["role"] == "user":
                asked.append(" ".join(message["content"].split()))
        return "\n".join(asked)

    def whole(self) -> str:
        """Equal for conversations that are trained alike."""
        parts = [self.messages, self.tools, sorted(self.weights.items()), self.template_arguments]
        return json.dumps(parts, sort_keys=True)

    def opposite(self) -> None:
        """Nothing is the contrary of an answer."""

    def fields(self) -> set[str]:
        """Message fields, and the row's arguments, that only some chat templates look at."""
        fields = {key for message in self.messages for key in PASSED_ON if key in message}
        return fields | {f"chat_template_kwargs.{name}" for name in self.template_arguments}


def has_calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_calls"))


def finished(conversation: Conversation, where: str, labels: Sequence[str] = ()) -> Conversation:
    """The conversation, its tools and calls settled, as ``checked``."""
    row = conversation
    row.messages, row.tools, noticed = settled(row.messages, row.tools)
    row.noticed |= noticed
    if weighted := len(row.weights.keys() - row.untrained):
        row.noticed[WEIGHTED] = weighted
    return checked(row, where, labels)


def checked(conversation: Conversation, where: str, labels: Sequence[str] = ()) -> Conversation:
    """The conversation, if there is an answer to learn in it. Raises BadRow otherwise.

    ``where``: the columns that the turns come from; ``labels``: a name for each turn, if not ``where[index]``.
    """
    messages = conversation.messages
    if not messages:
        raise BadRow("no turns", f"{where} is empty; a row needs a user turn and an answer")
    if all(message["role"] != "assistant" for message in messages):
        raise BadRow(NO_ANSWER, f"{where}: no assistant turn; there is nothing to learn from this row")
    if all(message["role"] != "assistant" or index in conversation.untrained for index, message in enumerate(messages)):
        text = "every assistant turn's own flag says not to train it; set one to true, or drop the row"
        raise BadRow(NOTHING_TO_LEARN, f"{where}: {text}")
    for index, message in enumerate(messages):
        at = labels[index] if labels else f"{where}[{index}]"
        empty = not message["content"].strip() and not has_calls(message)
        if empty and message["role"] == "assistant":
            raise BadRow("empty answer", f"{at}: the assistant's turn is empty; give its text, or drop the row")
        if empty and message["role"] == "user":
            raise BadRow("empty prompt", f"{at}: the user's turn is empty; give its text, or drop the row")
    if (last := messages[-1]["role"]) != "assistant":
        raise BadRow(OPEN_END.format(last), f"{where}: the row ends on a {last} turn that no answer follows; drop it")
    return conversation
