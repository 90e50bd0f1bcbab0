"""A conversation with a placeholder for each of its texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.tokens.reasoning import END, parted

# Words that templates look for in tools and calls. They cannot be taken out; nor can one become a control token,
# since the strings around it that could complete one are.
_STRUCTURE = frozenset(
    [
        "type",
        "function",
        "name",
        "description",
        "parameters",
        "properties",
        "required",
        "arguments",
        "items",
        "enum",
        "default",
        "title",
        "format",
        "id",
        "object",
        "string",
        "integer",
        "number",
        "boolean",
        "array",
        "null",
        "dict",
        "str",
        "int",
        "float",
        "bool",
        "list",
    ]
)
# The same names and descriptions come again in row after row; a long text is not kept for that.
_REMEMBERED = 400


@dataclass(frozen=True, slots=True)
class Slot:
    """A text that was taken out. ``message`` is None in tools; ``required``: the template must write it somewhere."""

    text: str
    message: int | None
    role: str
    field: str
    required: bool = True


@dataclass
class Skeleton:
    """A conversation whose texts are placeholders: its messages, its tools, and the slots for the texts in order."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    slots: list[Slot] = field(default_factory=list)

    @cached_property
    def key(self) -> str:
        """Equal for conversations that a template treats alike."""
        return json.dumps([self.messages, self.tools], ensure_ascii=False)


class _Names:
    """Puts names in the place of texts and keeps what they stand for."""

    def __init__(self, name_of: Callable[[int], str], controls: Iterable[str]) -> None:
        self._name_of = name_of
        self._controls = tuple(controls)
        self.slots: list[Slot] = []

    def text(self, text: str, message: int | None, role: str, field: str, *, required: bool = True) -> str:
        """The name for a text. White space around it stays: a template may strip it, and the name must show that."""
        core = text.strip()
        if not core:
            return text
        lead = len(text) - len(text.lstrip())
        name = self._name_of(len(self.slots))
        self.slots.append(Slot(core, message, role, field, required))
        return f"{text[:lead]}{name}{text[lead + len(core) :]}"

    def inside(self, value: Any, message: int | None, role: str, field: str, *, every_text: bool) -> Any:
        """A JSON value with its texts replaced: all of them, or those that could be part of a control token."""
        if isinstance(value, str):
            if every_text or self._suspicious(value):
                return self.text(value, message, role, field)
            return value
        if isinstance(value, list):
            return [self.inside(item, message, role, field, every_text=every_text) for item in value]
        if isinstance(value, dict):
            named = {}
            for key, item in value.items():
                name = self.text(key, message, role, field) if self._suspicious(key) else key
                named[name] = self.inside(item, message, role, field, every_text=every_text)
            return named
        return value

    def _suspicious(self, text: str) -> bool:
        if len(text) > _REMEMBERED:
            return could_be_control.__wrapped__(text, self._controls)
        return text not in _STRUCTURE and could_be_control(text, self._controls)


@lru_cache(maxsize=65536)
def could_be_control(text: str, controls: tuple[str, ...]) -> bool:
    """Whether a text holds a control token, or could be part of one together with what is written around it."""
    before, after = _edges(controls)
    return text.endswith(before) or text.startswith(after) or any(c in text or (text and text in c) for c in controls)


@lru_cache(maxsize=8)
def _edges(controls: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All proper beginnings and all proper ends of the control tokens."""
    before = {control[:size] for control in controls for size in range(1, len(control))}
    after = {control[size:] for control in controls for size in range(1, len(control))}
    return tuple(sorted(before)), tuple(sorted(after))


def as_rendered(conversation: Conversation, reasoning_key: str | None) -> list[dict[str, Any]]:
    """The messages as the template takes them: reasoning under the name it knows, or left out."""
    if all("reasoning_content" not in message for message in conversation.messages):
        return conversation.messages
    messages = []
    for message in conversation.messages:
        renamed = {key: value for key, value in message.items() if key != "reasoning_content"}
        if reasoning_key and "reasoning_content" in message:
            renamed[reasoning_key] = message["reasoning_content"]
        messages.append(renamed)
    return messages


def skeleton_of(
    conversation: Conversation,
    name_of: Callable[[int], str],
    controls: Iterable[str],
    reasoning_key: str | None,
    *,
    tags: bool = False,
) -> Skeleton:
    """The skeleton of a conversation.

    ``reasoning_key``: the name under which the template takes an assistant's reasoning; ``tags``: ``<think>`` and
    ``</think>`` at an answer's beginning stay in it as they are, and what is between them is a text of its own.
    """
    names = _Names(name_of, controls)
    messages = [
        _bare(message, index, names, reasoning_key, tags) for index, message in enumerate(conversation.messages)
    ]
    tools = None
    if conversation.tools:
        tools = [_bare_tool(tool, names) for tool in conversation.tools]
    return Skeleton(messages, tools, names.slots)


def _bare(message: dict[str, Any], index: int, names: _Names, reasoning_key: str | None, tags: bool) -> dict[str, Any]:
    role = message["role"]
    bare: dict[str, Any] = {"role": role}
    content, reasoning = message["content"], message.get("reasoning_content")
    if reasoning is not None and reasoning_key:
        bare[reasoning_key] = names.text(reasoning, index, role, "reasoning")
    if tags and role == "assistant" and (found := parted(content)):
        inner, rest = (
            names.text(text, index, role, of) for text, of in ((found.inner, "reasoning"), (found.rest, "content"))
        )
        bare["content"] = f"{found.lead}{inner}{END}{rest}"
    else:
        bare["content"] = names.text(content, index, role, "content")
    for key in ("functions", "function_calls"):
        if key in message:
            bare[key] = names.text(message[key], index, role, key)
    for key in ("name", "tool_call_id"):
        if key in message:
            bare[key] = names.text(message[key], index, role, key, required=False)
    if "tool_calls" in message:
        bare["tool_calls"] = [_bare_call(call, index, role, names) for call in message["tool_calls"]]
    return bare


def _bare_call(call: dict[str, Any], index: int, role: str, names: _Names) -> dict[str, Any]:
    function = call["function"]
    name = names.text(function["name"], index, role, "tool call")
    arguments = names.inside(function["arguments"], index, role, "tool call", every_text=True)
    bare = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return bare | ({"id": names.text(call["id"], index, role, "tool call id", required=False)} if "id" in call else {})


def _bare_tool(tool: dict[str, Any], names: _Names) -> dict[str, Any]:
    """A tool with its name taken out, so that a template which shows no tools is found out."""
    bare = names.inside(tool, None, "", "tools", every_text=False)
    inner, original = (bare["function"], tool["function"]) if isinstance(tool.get("function"), dict) else (bare, tool)
    name = original.get("name")
    if isinstance(name, str) and inner.get("name") == name:
        inner["name"] = names.text(name, None, "", "tools")
    return bare
