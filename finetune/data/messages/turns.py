"""Lists of turns to messages: roles, contents and their parts, in either spelling."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.calls import tool_calls_from
from hybrid_ft.finetune.data.messages.conversation import PASSED_ON, has_calls
from hybrid_ft.finetune.data.messages.flow_yaml import scalar
from hybrid_ft.finetune.data.messages.training_marks import KIND, MARKS, Weights, first_mark, mark_of, turn_mark
from hybrid_ft.finetune.data.sources.rows import BadRow

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "environment": "environment",
    "developer": "system",
    "function": "tool",
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
MEDIA = (
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "image_url",
    "image_urls",
    "image_path",
    "image_paths",
)
"""Columns and keys of pictures, films and sound."""
NOT_TEXT = "part that is not text"

Names = tuple[str, str]
"""The keys of who speaks in a turn, and of what is said."""
CHAT: Names = ("role", "content")
SHAREGPT: Names = ("from", "value")
BLANKS = " \t\r\n"
"""What may stand around a role's name; other white space, which nobody types, is no part of any."""
_CALLING_ROLES = ("function_call", "tool_call")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_KNOWN = {"tool_calls", "function_call", "function_calls", "functions", *_REASONING, *PASSED_ON, *MARKS, *MEDIA}
_PART_KEYS = {"type", "text", "value", "content", "reasoning", "thinking", "tool_call", *MARKS, *MEDIA}
_IN_TURNS = {
    "tool_use": "give it as the turn's tool_calls: [{name: ..., arguments: {...}}]",
    "tool_result": "give it as a turn of its own, {role: tool, content: ...}",
}
"""How what some write as parts of a content is read."""
_THOUGHTS = re.compile(r"\s*<think>(?P<inner>.*?)</think>(?P<rest>.*)", re.DOTALL)


def messages_from(
    items: Any, where: str, unused: set[str], weights: dict[int, Weights], wanted: Names | None = None
) -> list[dict[str, Any]]:
    """Messages in the ``role``, ``content`` form. Raises BadRow naming the field below ``where``.

    Each turn is read by the names that it has, or only by the ``wanted`` ones. ``unused`` is added to, and so is
    ``weights``: those of the assistant's turns, by index, that have other ones than 1.
    """
    messages = []
    if isinstance(items, list) and len(items) > 1 and where.isidentifier() and all(isinstance(t, str) for t in items):
        fix = f"where they are the user's and the assistant's in turn, set columns: {{turns: {where}}}"
        raise BadRow("wrong type", f"{where}: got a list of {len(items)} texts, which do not say who speaks; {fix}")
    names = likely = wanted or (SHAREGPT if where.startswith("conversation") else CHAT)
    for index, item in enumerate(_a_list(items, where)):
        at = f"{where}[{index}]"
        turn = _an_object(item, at)
        if (plain := _plain(turn, names)) is not None:
            messages.append(plain)
            continue
        names = wanted or names_of(turn, likely)
        if wanted is None:
            _refuse_two(turn, at)
        message, of_turn = _message(turn, at, unused, names, messages[-1]["role"] if messages else None)
        messages.append(message)
        if message["role"] == "assistant" and any(weight != 1 for _, weight in of_turn):
            weights[index] = of_turn
    return messages


def turns_from(value: Any, where: str, unused: set[str], weights: dict[int, Weights]) -> list[dict[str, Any]]:
    """The same of one turn alone or a list."""
    items = [value] if isinstance(value, dict) else value
    if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
        raise _a_list_of_texts(items, where)
    return messages_from(items, where, unused, weights)


def names_of(turn: Mapping[str, Any], likely: Names = CHAT) -> Names:
    """The keys of who speaks and of what is said in a turn, ``likely`` where that cannot be told.

    A table has the keys of both forms in each turn, null where the turn had none.
    """
    both = (likely, CHAT, SHAREGPT)
    whole = (names for names in both if all(turn.get(name) is not None for name in names))
    return next(whole, next((names for names in both if turn.get(names[0]) is not None), likely))


def _refuse_two(turn: Mapping[str, Any], at: str) -> None:
    """Raise BadRow for a turn that says one thing in the one form and another in the other."""
    first, second = ([turn.get(name) for name in names] for names in (CHAT, SHAREGPT))
    if None in (*first, *second):
        return
    roles = [ROLES.get(str(says).strip(BLANKS).lower()) for says, _ in (first, second)]
    if roles[0] != roles[1] or first[1] != second[1]:
        raise BadRow("wrong form", f"{at}: role and content say another thing than from and value; keep one of the two")


def refuse_media(values: Mapping[str, Any], at: str = "") -> None:
    """Raise BadRow for a picture, a film or a sound in a row's columns, or in a turn or a part at ``at``."""
    for key in MEDIA:
        value = values.get(key)
        if value not in (None, "", [], {}):
            fix = "leave the column out, or the row" if not at else "leave it out, or the row"
            raise BadRow(NOT_TEXT, f"{at}{'.' if at else ''}{key}: got {shown(value)}; this model reads text; {fix}")


def _plain(turn: dict[str, Any], names: Names) -> dict[str, Any] | None:
    """The message of a turn that is nothing but a role and its text, as most are; None for others, which take ten times
    as long to look through."""
    says, text = turn.get(names[0]), turn.get(names[1])
    if len(turn) != 2 or type(says) is not str or type(text) is not str or says.lower() in _CALLING_ROLES:
        return None
    role = ROLES.get(says) or ROLES.get(says.lower())
    return None if role is None else {"role": role, "content": text}


def _message(
    turn: dict[str, Any], at: str, unused: set[str], names: Names, before: str | None
) -> tuple[dict[str, Any], Weights]:
    """A turn's message and its weights, ``names`` being the keys of role and text, and ``before``
    the last turn's role."""
    says, text = names
    if turn.get(says) is None and (other := names_of(turn, names)) != names:
        fix = "leave format out, and each turn is read by the names that it has"
        raise BadRow("wrong form", f"{at} has {' and '.join(other)}, not {' and '.join(names)}; {fix}")
    if says not in turn:
        keys = ", ".join(list(turn)[:6]) or "nothing"
        raise BadRow("unknown role", f"{at}: has no {says} (found {keys}); a turn is {{{says}: user, {text}: ...}}")
    role = _role(turn[says], f"{at}.{says}", turn.get(text), before)
    where = at.partition("[")[0]
    unused.update(f"{where}[].{key}" for key in _named(turn) - _KNOWN - set(names))
    refuse_media(turn, at)
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
    mark = turn_mark(turn, role, at)
    weights: Weights = [(None, 1.0 if mark is None else mark)]
    if turn[says].strip(BLANKS).lower() in _CALLING_ROLES:
        message |= _called(turn.get(text), f"{at}.{text}")
    elif turn.get(text) is not None:
        message["content"], more, of_parts = _content(turn[text], f"{at}.{text}", role, unused)
        message |= more
        if of_parts is not None and mark is not None and of_parts != weights:
            raise BadRow(KIND, f"{at}: {first_mark(turn)} and the marks of its parts contradict each other; keep one")
        weights = of_parts or weights
    elif not has_calls(message):
        missing = "null" if text in turn else "missing"
        raise BadRow("null content", f"{at}.{text} is {missing} (role {role}); give its text, or leave the turn out")
    if role != "assistant" and has_calls(message):
        raise BadRow("tool call", f"{at}: role {role} cannot call tools; only the assistant does")
    return message, weights


def _role(role: Any, at: str, text: Any, before: str | None) -> str:
    known = ROLES.get(role.strip(BLANKS).lower()) if isinstance(role, str) else None
    if known is None:
        swapped = isinstance(text, str) and text in ROLES
        likely = "assistant" if before == "user" else "user"
        means = f"; say what it means, such as roles: {{{scalar(role)}: {likely}}}" if isinstance(role, str) else ""
        fix = "; it looks swapped with the text beside it" if swapped else means
        names = "system, user, assistant, tool, environment, or a common name of theirs (human, gpt, observation)"
        raise BadRow("unknown role", f"{at}: got {shown(role)}; must be one of {names}{fix}")
    return known


def _called(value: Any, at: str) -> dict[str, Any]:
    """Calls that are a turn's text, behind the thoughts that some sets put before them."""
    thoughts = _THOUGHTS.fullmatch(value) if isinstance(value, str) else None
    if thoughts is None:
        return {"tool_calls": tool_calls_from(value, at)}
    return {"reasoning_content": thoughts["inner"].strip("\n"), "tool_calls": tool_calls_from(thoughts["rest"], at)}


def _content(value: Any, at: str, role: str, unused: set[str]) -> tuple[str, dict[str, Any], Weights | None]:
    """Content as text, what else its typed parts hold (reasoning and tool calls), and the weights that their marks give
    them; None where they have no mark."""
    if not isinstance(value, list):
        return text_from(value, at), {}, None
    texts: list[str] = []
    reasoning: list[str] = []
    calls: list[dict[str, Any]] = []
    marks: list[tuple[str, int, float | None]] = []
    for index, item in enumerate(value):
        part_at = f"{at}[{index}]"
        part = _an_object(item, part_at, "content is a text or a list of {type: text, text: ...} parts")
        kind = part.get("type")
        if kind in (None, "input_text", "output_text") and isinstance(part.get("text"), str):
            kind = "text"
        inner = next((part[key] for key in ("text", "value", "content", str(kind)) if part.get(key) is not None), None)
        if kind == "text":
            texts.append(text_from(inner, f"{part_at}.text"))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(text_from(inner, f"{part_at}.{kind}"))
        elif kind == "tool_call" and role == "assistant":
            calls += tool_calls_from(inner, f"{part_at}.{kind}")
        else:
            rule = _IN_TURNS.get(str(kind), "this model reads text; leave the part out, or the row")
            raise BadRow(NOT_TEXT, f"{part_at}: got a part of type {shown(kind)}; {rule}")
        refuse_media(part, part_at)
        unused.update(f"{at.partition('[')[0]}[].content[].{key}" for key in _named(part) - _PART_KEYS)
        mark = mark_of(part, part_at, "part")
        if mark and role != "assistant":
            raise BadRow(KIND, f"{part_at}.{first_mark(part)}: only parts of assistant turns are trained")
        marks.append((str(kind), len(texts[-1]) if kind == "text" else 0, mark))
    more: dict[str, Any] = {"reasoning_content": "".join(reasoning)} if reasoning else {}
    more |= {"tool_calls": calls} if calls else {}
    return "".join(texts), more, _weights(marks, at)


def _weights(marks: list[tuple[str, int, float | None]], at: str) -> Weights | None:
    """The weights of a turn from its parts: kind, characters and mark of each; None where none has a mark.

    The turn's end has its last part's.
    """
    if all(mark is None for _, _, mark in marks):
        return None
    given = [(kind, size, 1.0 if mark is None else mark) for kind, size, mark in marks]
    if len({mark for _, _, mark in given}) == 1:
        return [(None, given[0][2])]
    before = {mark for kind, _, mark in given if kind in ("reasoning", "thinking")}
    calls = {mark for kind, _, mark in given if kind == "tool_call"}
    if len(before) > 1 or len(calls) > 1:
        raise BadRow(KIND, f"{at}: its {'thoughts' if len(before) > 1 else 'calls'} have several marks; give them one")
    end = 0
    weights: Weights = [(0, before.pop() if before else 1.0)]
    for kind, size, mark in given:
        if kind == "text":
            end += size
            weights.append((end, mark))
    return [*weights, (None, calls.pop() if calls else given[-1][2])]


def _named(value: Mapping[str, Any]) -> set[str]:
    """The keys of a turn or a part that hold something: a table has every key in each."""
    return {key for key, inner in value.items() if inner is not None}


def text_from(value: Any, at: str) -> str:
    if value is None:
        raise BadRow("null content", f"{at} is null; give its text")
    if not isinstance(value, str):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fix = "; write it in quotes" if number else ""
        if number and at.isidentifier():
            fix += f', or map it in columns as "{{{{ {at} }}}}"'
        elif isinstance(value, bool) and at.isidentifier():
            fix = f"; map it in columns as \"{{{{ 'yes' if {at} else 'no' }}}}\", in words that are to be learned"
        raise BadRow("not text", f"{at}: got {shown(value)}; must be a string{fix}")
    return value


def _a_list_of_texts(texts: list[str], at: str) -> BadRow:
    if len(texts) > 1:
        fix = "give each a row of its own"
    elif at.isidentifier():
        fix = f'map it in columns as "{{{{ {at}[0] }}}}"'
    else:
        fix = "give the text without the list"
    count = "a list of 1 text" if len(texts) == 1 else f"a list of {len(texts)} texts"
    return BadRow("wrong type", f"{at}: got {count}; must be a string, or a list of turns (role, content); {fix}")


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
