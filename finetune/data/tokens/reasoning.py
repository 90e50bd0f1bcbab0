"""Reasoning in a conversation: where it stands, and where it goes.

It comes as a field of its own (``reasoning_content``), between ``<think>`` and ``</think>`` at an answer's beginning,
or before a lone ``</think>``, when the prompt had opened the thought. Tags are told from text here and nowhere else, so
that what a template is given and the plan of it never differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.sources.rows import BadRow

HIDDEN, DROPPED, AS_TEXT, LONE_END, LONE_KEPT = (
    "reasoning_not_shown",
    "reasoning_dropped",
    "reasoning_as_text",
    "lone_think_end",
    "lone_think_end_kept",
)
"""What can happen to a row's reasoning: the keys under which it is counted."""
BEGIN, END = "<think>", "</think>"

_TAGGED = re.compile(r"(?P<lead>\s*<think>)(?P<inner>.*?)</think>(?P<rest>.*)", re.DOTALL)


@dataclass(frozen=True)
class Thoughts:
    """What becomes of reasoning, as the recipe says.

    ``reasoning``: template (it is handed to the chat template), text (written into the answer, in tags) or drop.
    ``train_empty``: whether a thought without text that the template writes itself is trained.
    """

    reasoning: str = "template"
    train_empty: bool = True


AS_GIVEN = Thoughts()


@dataclass(frozen=True)
class Habits:
    """What a chat template does with reasoning.

    ``field``: the name under which it takes it, if any; ``opening``: what it writes behind the assistant's header to
    ask for an answer; ``parts_tags``: whether it looks for the tags in an answer's text itself.
    """

    field: str | None
    opening: str
    parts_tags: bool

    @property
    def opened_thought(self) -> str:
        """``opening`` where it begins a thought that an answer is to go on with, "" elsewhere."""
        return self.opening if BEGIN in self.opening and END not in self.opening else ""


class Parted(NamedTuple):
    """An answer's text as ``lead + inner + </think> + rest``; ``lead`` is empty where the thought's beginning is not
    there."""

    lead: str
    inner: str
    rest: str


def parted(content: str) -> Parted | None:
    """The thought at an answer's beginning, or None where there is none that ends."""
    if END not in content:
        return None
    if match := _TAGGED.fullmatch(content):
        return Parted(match["lead"], match["inner"], match["rest"])
    inner, _, rest = content.partition(END)
    return None if BEGIN in inner else Parted("", inner, rest)


@dataclass
class Placed:
    """A conversation whose reasoning stands where it is to be rendered.

    ``tags``: its tags are control tokens where the tokenizer has them, not the text of a row. ``happened``: how many
    turns, by the keys above.
    """

    conversation: Conversation
    tags: bool = False
    happened: dict[str, int] = field(default_factory=dict)


def placed(conversation: Conversation, thoughts: Thoughts, habits: Habits) -> Placed:
    """Put every turn's reasoning where the recipe wants it. Raises BadRow where an answer holds
    nothing else to learn."""
    messages = conversation.messages
    if not any("reasoning_content" in message or END in message["content"] for message in messages):
        return Placed(conversation, thoughts.reasoning == "text")
    happened: dict[str, int] = {}
    moved = [
        _moved(message, thoughts, habits, happened) if message["role"] == "assistant" else message
        for message in messages
    ]
    tags = thoughts.reasoning == "text" or (habits.parts_tags and habits.field is None)
    return Placed(replace(conversation, messages=moved), tags, happened)


def _moved(message: dict[str, Any], thoughts: Thoughts, habits: Habits, happened: dict[str, int]) -> dict[str, Any]:
    own = message.get("reasoning_content")
    tagged = parted(message["content"]) if own is None else None
    if own is None and tagged is None:
        return message
    if tagged and not (tagged.inner + tagged.rest).strip() and not calls(message):
        raise BadRow("empty answer", "the answer is an empty thought and nothing else; give its text, or drop the row")
    bare = {key: value for key, value in message.items() if key != "reasoning_content"}
    if thoughts.reasoning == "drop":
        return _without(bare, tagged, happened)
    if thoughts.reasoning == "text":
        return bare | {"content": _as_text(message, own, tagged, habits, happened)}
    if own is not None:
        if habits.field is None:
            _count(happened, HIDDEN, bool(own.strip()))
            return bare
        return message
    assert tagged is not None
    if habits.field is not None:
        _count(happened, LONE_END, not tagged.lead)
        # line ends beside the tags belong to those: templates write their own
        return bare | {"reasoning_content": tagged.inner.strip("\n"), "content": tagged.rest.lstrip("\n")}
    if not tagged.lead and habits.opened_thought and not habits.parts_tags:
        _count(happened, LONE_END, True)
        return bare | {"content": habits.opened_thought + message["content"]}
    _count(happened, LONE_KEPT, not tagged.lead and not habits.parts_tags)
    return message


def _without(bare: dict[str, Any], tagged: Parted | None, happened: dict[str, int]) -> dict[str, Any]:
    _count(happened, DROPPED, True)
    if tagged is None:
        return bare
    _count(happened, LONE_END, not tagged.lead)
    rest = tagged.rest.lstrip("\n")
    if not rest.strip() and not calls(bare):
        text = "the answer is nothing but reasoning, which data.reasoning: drop takes out"
        raise BadRow("empty answer", f"{text}; drop the row, or keep its reasoning")
    return bare | {"content": rest}


def _as_text(
    message: dict[str, Any], own: str | None, tagged: Parted | None, habits: Habits, happened: dict[str, int]
) -> str:
    content: str = message["content"]
    if own is not None:
        if not own.strip():
            return content
        _count(happened, AS_TEXT, True)
        thought = own.strip("\n")
        return f"{BEGIN}\n{thought}\n{END}\n\n{content}"
    assert tagged is not None
    _count(happened, AS_TEXT, True)
    if tagged.lead:
        return content
    _count(happened, LONE_END, True)
    # such an answer went on from what the template had opened
    return (habits.opened_thought or f"{BEGIN}\n") + content


def calls(message: Mapping[str, Any]) -> bool:
    """Whether a turn calls tools."""
    return bool(message.get("tool_calls") or message.get("function_calls"))


def _count(happened: dict[str, int], kind: str, count: bool) -> None:
    if count:
        happened[kind] = happened.get(kind, 0) + 1
