"""Columns that every format reads: system text, tools, earlier turns, context."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.calls import tools_from
from hybrid_ft.finetune.data.messages.training_marks import KIND, MARKS, mark_of
from hybrid_ft.finetune.data.messages.turns import MEDIA, messages_from, text_from
from hybrid_ft.finetune.data.sources.rows import BadRow

Values = Mapping[str, Any]
Messages = list[dict[str, Any]]

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction")
TOOLS = ("tools", "functions", "available_tools")
QUESTION = ("history", "input", "context")
"""What belongs to a question that is one text: earlier turns, and what it is about."""
BESIDE = frozenset([*SYSTEM, *TOOLS, *MARKS, *MEDIA])
"""What every format reads or refuses."""
NOT_TO_BE_MISSED = BESIDE | set(QUESTION) | {"documents", "contexts", "reasoning", "reasoning_content", "thinking"}
"""What is named in a note where a row has it, in whichever case, and nothing reads it."""
_ASKS = frozenset(["prompt", "instruction", "query", "question"])


def system_from(values: Values) -> str | None:
    """The row's system text, if it has one, also in parts. Raises BadRow for two that differ."""
    found = {name: _text_of(values[name], name) for name in SYSTEM if values.get(name) not in (None, "", [])}
    if len(set(found.values())) > 1:
        raise BadRow("two system texts", f"{' and '.join(found)} differ; keep one of the two")
    return next(iter(found.values()), None)


def _text_of(value: Any, name: str) -> str:
    if not isinstance(value, list) or not value or not all(isinstance(part, dict) for part in value):
        return text_from(value, name)
    return "".join(
        message["content"] for message in messages_from([{"role": "system", "content": value}], name, set(), {})
    )


def with_system(messages: Messages, system: str | None) -> Messages:
    """The messages behind the row's system text. Raises BadRow where there is another one among them."""
    if system is None or (messages and messages[0] == {"role": "system", "content": system}):
        return messages
    if any(message["role"] == "system" for message in messages):
        raise BadRow("two system texts", "system: there is a system turn as well; keep one of the two")
    return [{"role": "system", "content": system}, *messages]


def row_tools(values: Values) -> list[dict[str, Any]] | None:
    """The row's function definitions, under whichever name. Raises BadRow for two that differ."""
    found = {name: tools for name in TOOLS if (tools := tools_from(values.get(name), name)) is not None}
    if len(found) > 1 and any(tools != next(iter(found.values())) for tools in found.values()):
        raise BadRow("tools", f"{' and '.join(found)} differ; keep one of them")
    return next(iter(found.values()), None)


def question_from(text: str, values: Values, unused: set[str]) -> Messages:
    """Earlier turns, and the user's turn: the question, and what it is about below a blank line.

    ``unused`` gets the name of a context that is not a text.
    """
    parts = [text]
    for name in ("input", "context"):
        value = values.get(name)
        if name == "context" and value is not None and not isinstance(value, str):
            unused.add(name)
        elif value is not None:
            parts.append(text_from(value, name))
    asked = "\n\n".join(part for part in parts if part.strip()) or text
    return [*_history(values.get("history")), {"role": "user", "content": asked}]


def is_blank(value: Any) -> bool:
    """Whether a column holds nothing, also as a table writes that."""
    return value in (None, "", [], {}) or (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null"))


def left_out(values: Values, read: AbstractSet[str], messages: Messages | None) -> list[str]:
    """Columns outside ``read`` that hold what other formats train on.

    A question beside turns is one of them unless it is among these, as a copy of the first turn is.
    """
    names = []
    for name, value in values.items():
        known = name.lower()
        if known in _ASKS and isinstance(value, str) and messages is not None:
            told = any(value.strip() in message["content"] for message in messages)
        else:
            told = known not in NOT_TO_BE_MISSED
        if not told and name not in read and not is_blank(value):
            names.append(name)
    return names


def row_mark(values: Values) -> float:
    """The row's own weight, above 0. Raises BadRow for a row that is not to be trained."""
    mark = mark_of(values, "", "row")
    if mark == 0:
        name = next(name for name in MARKS if not is_blank(values.get(name)))
        text = f"{name}: got {shown(values[name])}; the row says that it is not trained"
        such = f"without: {{{name}: {shown(values[name])}}} beside the source's path"
        raise BadRow(KIND, f"{text}; leave such rows out, with {such}")
    return 1.0 if mark is None else mark


def left_beside_turns(values: Values) -> set[str]:
    """Columns that belong to a question, in a row whose question is a list of turns that they have no place in."""
    return {name for name in QUESTION if not is_blank(values.get(name))}


def _history(value: Any) -> Messages:
    """Earlier turns: a list of [question, answer], or of messages."""
    messages: Messages = []
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return messages_from(value, "history", set(), {})
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong type", f"history: got {shown(value)}; must be a list of [question, answer] pairs")
    for index, pair in enumerate(value or []):
        at = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("wrong type", f"{at}: got {shown(pair)}; must be a [question, answer] pair")
        messages.append({"role": "user", "content": text_from(pair[0], f"{at}[0]")})
        messages.append({"role": "assistant", "content": text_from(pair[1], f"{at}[1]")})
    return messages
