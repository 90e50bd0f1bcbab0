"""A conversation, the one shape behind all sources, and its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "environment": "environment",
    "function": "tool",
}
SHAREGPT_ROLES = ROLES | {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
NOTHING_TO_LEARN = "nothing to learn"
_CALLING_ROLES = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
PASSED_ON = ("name", "tool_call_id")  # for templates that print them
TRAINING_FLAGS = ("train", "weight", "loss", "loss_weight")
"""What sets call a turn's own word on whether it is trained: true or 1, false or 0."""
_KNOWN = {"role", "content", "tool_calls", "function_call", "function_calls", "functions", *_REASONING, *PASSED_ON}


@dataclass(slots=True)
class Conversation:
    """Messages as a chat template takes them.

    Every message has ``role`` (one of ROLES' values) and ``content`` (text, "" beside calls). It may have
    ``tool_calls`` (a list of ``{"type": "function", "function": {"name", "arguments": {...}}}``), the released Olmo
    templates' ready-made ``function_calls`` and ``functions`` (text), ``reasoning_content``, ``name`` and
    ``tool_call_id``. ``tools`` is None where there are none. ``unused`` names the message fields that were left out,
    ``untrained`` the assistant's messages, by index, that are there to be read and not to be learned.
    ``template_arguments`` are what the row gives its chat template beside the messages.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    unused: set[str] = field(default_factory=set)
    untrained: set[int] = field(default_factory=set)
    template_arguments: dict[str, Any] = field(default_factory=dict)

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
        parts = [self.messages, self.tools, sorted(self.untrained), self.template_arguments]
        return json.dumps(parts, sort_keys=True)

    def fields(self) -> set[str]:
        """Message fields, and the row's arguments, that only some chat templates look at."""
        fields = {key for message in self.messages for key in PASSED_ON if key in message}
        return fields | {f"chat_template_kwargs.{name}" for name in self.template_arguments}


def messages_from(items: Any, where: str, unused: set[str], untrained: set[int] | None = None) -> list[dict[str, Any]]:
    """Messages in the ``role``, ``content`` form. Raises BadRow naming the field below ``where``.

    ``unused`` and ``untrained`` are added to; without ``untrained`` a turn's training flag is one more unused field.
    """
    messages = []
    for index, item in enumerate(_a_list(items, where)):
        messages.append(_message(item, f"{where}[{index}]", unused, untrained is not None))
        if untrained is not None and not trained(item, messages[-1]["role"], f"{where}[{index}]"):
            untrained.add(index)
    return messages


def sharegpt_messages_from(
    items: Any, where: str, unused: set[str], untrained: set[int] | None = None
) -> list[dict[str, Any]]:
    """Messages in the ``from``, ``value`` form; the rest is as in ``messages_from``."""
    known = {"from", "value"} | (set() if untrained is None else set(TRAINING_FLAGS))
    messages = []
    for index, item in enumerate(_a_list(items, where)):
        at = f"{where}[{index}]"
        turn = _an_object(item, at)
        unused.update(f"{where}[].{key}" for key in turn.keys() - known)
        role = _role(turn.get("from"), f"{at}.from", SHAREGPT_ROLES, turn.get("value"))
        if turn["from"] in _CALLING_ROLES:
            calls = tool_calls_from(turn.get("value"), f"{at}.value")
            messages.append({"role": role, "content": "", "tool_calls": calls})
        else:
            content, more = _content(turn.get("value"), f"{at}.value", role)
            messages.append({"role": role, "content": content} | more)
        if untrained is not None and not trained(turn, role, at):
            untrained.add(index)
    return messages


def trained(turn: Mapping[str, Any], role: str, at: str) -> bool:
    """Whether a turn's own flags leave it to be trained; True for turns that nobody trains anyway.

    Raises BadRow for a flag that is neither, for two that differ, and for one that asks to train another's turn.
    """
    flags = {key: turn[key] for key in TRAINING_FLAGS if turn.get(key) is not None}
    for key, value in flags.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            rule = "must be true or 1 (the turn is trained), false or 0 (it is not)"
            raise BadRow("training flag", f"{at}.{key}: got {shown(value)}; {rule}")
        if value and role != "assistant":
            raise BadRow(
                "training flag", f"{at}.{key}: got {shown(value)} (role {role}); only assistant turns are trained"
            )
    if len(set(map(bool, flags.values()))) > 1:
        raise BadRow("training flag", f"{at}: {' and '.join(flags)} contradict each other; keep one")
    return role != "assistant" or all(flags.values())


def _message(item: Any, at: str, unused: set[str], flags: bool) -> dict[str, Any]:
    turn = _an_object(item, at)
    if "role" not in turn and "from" in turn:
        raise BadRow("wrong form", f"{at} has from and value; set format: sharegpt")
    role = _role(turn.get("role"), f"{at}.role", ROLES, turn.get("content"))
    where = at.partition("[")[0]
    known = _KNOWN.union(TRAINING_FLAGS) if flags else _KNOWN
    unused.update(f"{where}[].{key}" for key in turn.keys() - known)
    message: dict[str, Any] = {"role": role, "content": ""}
    for key in ("function_calls", "functions", *PASSED_ON):
        if turn.get(key) is not None:
            message[key] = text_from(turn[key], f"{at}.{key}")
    if reasoning := [key for key in _REASONING if turn.get(key) is not None]:
        message["reasoning_content"] = text_from(turn[reasoning[0]], f"{at}.{reasoning[0]}")
    if turn.get("tool_calls") not in (None, []):
        message["tool_calls"] = tool_calls_from(turn["tool_calls"], f"{at}.tool_calls")
    elif turn.get("function_call") is not None:
        message["tool_calls"] = tool_calls_from(turn["function_call"], f"{at}.function_call")
    if turn.get("content") is not None:
        message["content"], more = _content(turn["content"], f"{at}.content", role)
        message |= more
    elif not _calls(message):
        missing = "null" if "content" in turn else "missing"
        raise BadRow("null content", f"{at}.content is {missing} (role {role}); give its text, or leave the turn out")
    if role != "assistant" and _calls(message):
        raise BadRow("tool call", f"{at}: role {role} cannot call tools; only the assistant does")
    return message


def _calls(message: Mapping[str, Any]) -> bool:
    return bool(message.get("tool_calls") or message.get("function_calls"))


def _role(role: Any, at: str, roles: Mapping[str, str], text: Any) -> str:
    known = roles.get(role) if isinstance(role, str) else None
    if known is None:
        swapped = isinstance(text, str) and text in roles
        fix = "; it looks swapped with the text beside it" if swapped else ""
        raise BadRow("unknown role", f"{at}: got {shown(role)}; must be one of {', '.join(roles)}{fix}")
    return known


def _content(value: Any, at: str, role: str) -> tuple[str, dict[str, Any]]:
    """Content as text, and what else its typed parts hold: reasoning and tool calls."""
    if value is None:
        raise BadRow("null content", f"{at} is null (role {role}); give its text, or leave the turn out")
    if not isinstance(value, list):
        return text_from(value, at), {}
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    for index, item in enumerate(value):
        part_at = f"{at}[{index}]"
        part = _an_object(item, part_at, "content is a text or a list of {type: text, text: ...} parts")
        kind = part.get("type")
        inner = next((part[key] for key in ("text", "value", "content", str(kind)) if part.get(key) is not None), None)
        if kind == "text":
            texts.append(text_from(inner, f"{part_at}.text"))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(text_from(inner, f"{part_at}.{kind}"))
        elif kind == "tool_call" and role == "assistant":
            calls += tool_calls_from(inner, f"{part_at}.{kind}")
        else:
            rule = "this model reads text; leave the part out, or the row"
            raise BadRow("part that is not text", f"{part_at}: got a part of type {shown(kind)}; {rule}")
    more: dict[str, Any] = {"reasoning_content": "".join(reasoning)} if reasoning else {}
    return "".join(texts), more | ({"tool_calls": calls} if calls else {})


def text_from(value: Any, at: str) -> str:
    if value is None:
        raise BadRow("null content", f"{at} is null; give its text")
    if not isinstance(value, str):
        raise BadRow("not text", f"{at}: got {shown(value)}; must be a string")
    return value


def tool_calls_from(value: Any, at: str) -> list[dict[str, Any]]:
    """Calls given as objects, as JSON text or as a list of either, arguments parsed."""
    if isinstance(value, str):
        value = strict_json.parse(value, f"{at}: ")
    items = value if isinstance(value, list) else [value]
    if not items:
        raise BadRow("tool call", f"{at} is an empty list; a call has a name and arguments")
    return [_tool_call(item, f"{at}[{index}]" if len(items) > 1 else at) for index, item in enumerate(items)]


def _tool_call(item: Any, at: str) -> dict[str, Any]:
    if isinstance(item, str):
        item = strict_json.parse(item, f"{at}: ")
    call = _an_object(item, at, "a call is an object with name and arguments")
    function = call["function"] if isinstance(call.get("function"), dict) else call
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not name.strip():
        raise BadRow("tool call", f"{at}: name is {shown(name)}; a call needs the function's name")
    if isinstance(arguments, str):
        arguments = strict_json.parse(arguments, f"{at}.arguments: ") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise BadRow("tool call", f"{at}.arguments: got {shown(arguments)}; must be an object of names and values")
    _check_json(arguments, f"{at}.arguments")
    wrapped: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return wrapped | ({"id": call["id"]} if isinstance(call.get("id"), str) else {})


def tools_from(value: Any, at: str = "tools") -> list[dict[str, Any]] | None:
    """A row's tools, given as a list or as JSON text; none, null, "" and [] are no tools."""
    if isinstance(value, str):
        value = strict_json.parse(value, f"{at}: ") if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadRow("tools", f"{at}: got {shown(value)}; must be a list of function definitions, or JSON text of one")
    tools = []
    for index, item in enumerate(value):
        tool = strict_json.parse(item, f"{at}[{index}]: ") if isinstance(item, str) else item
        tools.append(_an_object(tool, f"{at}[{index}]", "a tool is an object with a name and parameters"))
    _check_json(tools, at)
    return tools


def _check_json(value: Any, at: str) -> None:
    """Refuse what JSON cannot hold: dates, bytes and NaN from typed columns."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow("wrong type", f"{at}: cannot be written as JSON ({error})") from None


def checked(conversation: Conversation, where: str, labels: Sequence[str] = ()) -> Conversation:
    """The conversation, if there is an answer to learn in it. Raises BadRow otherwise.

    ``where``: the columns that the turns come from; ``labels``: a name for each turn, if not ``where[index]``.
    """
    messages = conversation.messages
    if not messages:
        raise BadRow("no turns", f"{where} is empty; a row needs a user turn and an answer")
    if all(message["role"] != "assistant" for message in messages):
        raise BadRow("no assistant turn", f"{where}: no assistant turn; there is nothing to learn from this row")
    if all(message["role"] != "assistant" or index in conversation.untrained for index, message in enumerate(messages)):
        text = "every assistant turn's own flag says not to train it; set one to true, or drop the row"
        raise BadRow(NOTHING_TO_LEARN, f"{where}: {text}")
    for index, message in enumerate(messages):
        at = labels[index] if labels else f"{where}[{index}]"
        empty = not message["content"].strip() and not _calls(message)
        if empty and message["role"] == "assistant":
            raise BadRow("empty answer", f"{at}: the assistant's turn is empty; give its text, or drop the row")
        if empty and message["role"] == "user":
            raise BadRow("empty prompt", f"{at}: the user's turn is empty; give its text, or drop the row")
    if (last := messages[-1]["role"]) != "assistant":
        raise BadRow(
            f"ends on a {last} turn", f"{where}: the row ends on a {last} turn that no answer follows; drop it"
        )
    return conversation


def _a_list(value: Any, at: str) -> list[Any]:
    if value is None:
        raise BadRow("null content", f"{at} is null; must be a list of turns")
    if not isinstance(value, list):
        raise BadRow("wrong type", f"{at}: got {shown(value)}; must be a list of turns")
    return value


def _an_object(value: Any, at: str, rule: str = "a turn is an object with a role and a text") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow("wrong type", f"{at}: got {shown(value)}; {rule}")
    return value
