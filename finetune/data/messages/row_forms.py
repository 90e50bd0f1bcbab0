"""The forms of a row that need no dataset card: which columns they are known by, and how they become messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.conversation import (
    Conversation,
    checked,
    messages_from,
    sharegpt_messages_from,
    text_from,
    tools_from,
)
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

Values = Mapping[str, Any]
_TURNS = ("messages", "conversations", "conversation")


@dataclass(frozen=True)
class Form:
    """How a source's rows are read. ``reads``: the columns that are used, in words; ``columns``: their names."""

    name: str
    reads: str
    columns: frozenset[str]
    convert: Callable[[Values], Conversation]


def recognise(rows: Iterable[Row], wanted: str | None) -> Form | None:
    """The form of a source from its first rows, or None. ``wanted`` is the recipe's ``format``."""
    rows = list(rows)
    columns = {name for row in rows for name in row.values}
    turns = next((name for name in _TURNS if name in columns), None)
    if turns and wanted in (None, "messages", "sharegpt"):
        return _turn_form(turns, wanted or _kind_of_turns(rows, turns))
    if wanted in (None, "prompt-completion") and {"prompt", "completion"} <= columns:
        reads = "prompt is the user's turn, completion the assistant's"
        return Form("prompt-completion", reads, frozenset({"prompt", "completion", "tools"}), _prompt_completion)
    if wanted in (None, "alpaca") and {"instruction", "output"} <= columns:
        both = "instruction and input, a blank line between, are" if "input" in columns else "instruction is"
        reads = f"{both} the user's turn, output the assistant's"
        return Form(
            "alpaca", reads, frozenset({"instruction", "input", "output", "system", "history", "tools"}), _alpaca
        )
    return None


def needed(wanted: str) -> str:
    """The columns that a form cannot be without, in words."""
    return {
        "messages": "messages",
        "sharegpt": "conversations",
        "prompt-completion": "prompt and completion",
        "alpaca": "instruction and output",
    }[wanted]


def _kind_of_turns(rows: list[Row], column: str) -> str:
    for row in rows:
        turns = row.values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "sharegpt" if "from" in turns[0] and "role" not in turns[0] else "messages"
    return "sharegpt" if column.startswith("conversation") else "messages"


def _turn_form(column: str, kind: str) -> Form:
    turns_from = sharegpt_messages_from if kind == "sharegpt" else messages_from

    def convert(values: Values) -> Conversation:
        row = Conversation([])
        row.messages = turns_from(_column(values, column), column, row.unused, row.untrained)
        if kind == "sharegpt" and values.get("system") not in (None, ""):
            row.messages = _with_system(row.messages, text_from(values["system"], "system"))
            row.untrained = {index + 1 for index in row.untrained}
        row.tools = tools_from(values.get("tools"))
        return checked(row, column)

    names = "from, value" if kind == "sharegpt" else "role, content"
    columns = {column, "tools", "system"} if kind == "sharegpt" else {column, "tools"}
    return Form(kind, f"{column} holds the turns ({names})", frozenset(columns), convert)


def _with_system(messages: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    if any(message["role"] == "system" for message in messages):
        raise BadRow("two system texts", "system: there is a system turn as well; keep one of the two")
    return [{"role": "system", "content": system}, *messages]


def _column(values: Values, name: str) -> Any:
    if name not in values:
        found = ", ".join(map(str, list(values)[:8]))
        raise BadRow("column missing", f"column {name} is missing (found {found or 'none'})")
    return values[name]


def _prompt_completion(values: Values) -> Conversation:
    row = Conversation([])
    labels: list[str] = []
    for column, role in (("prompt", "user"), ("completion", "assistant")):
        value = _column(values, column)
        if isinstance(value, list):
            untrained: set[int] = set()
            turns = messages_from(value, column, row.unused, untrained)
            row.untrained |= {len(row.messages) + index for index in untrained}
            row.messages += turns
            labels += [f"{column}[{index}]" for index in range(len(turns))]
        else:
            row.messages.append({"role": role, "content": text_from(value, column)})
            labels.append(column)
    row.tools = tools_from(values.get("tools"))
    return checked(row, "prompt and completion", labels)


def _alpaca(values: Values) -> Conversation:
    messages: list[dict[str, Any]] = []
    if values.get("system") not in (None, ""):
        messages.append({"role": "system", "content": text_from(values["system"], "system")})
    messages += _history(values.get("history"))
    prompt = text_from(_column(values, "instruction"), "instruction")
    if values.get("input") is not None and (extra := text_from(values["input"], "input")).strip():
        prompt = f"{prompt}\n\n{extra}" if prompt.strip() else extra
    messages.append({"role": "user", "content": prompt})
    messages.append({"role": "assistant", "content": text_from(_column(values, "output"), "output")})
    labels = [f"turn {index}" for index in range(len(messages) - 2)] + ["instruction", "output"]
    return checked(Conversation(messages, tools_from(values.get("tools"))), "instruction and output", labels)


def _history(value: Any) -> list[dict[str, Any]]:
    """Alpaca's earlier turns: a list of [question, answer]."""
    messages: list[dict[str, Any]] = []
    if value is not None and not isinstance(value, list):
        raise BadRow("wrong type", f"history: got {shown(value)}; must be a list of [question, answer] pairs")
    for index, pair in enumerate(value or []):
        at = f"history[{index}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise BadRow("wrong type", f"{at}: got {shown(pair)}; must be a [question, answer] pair")
        messages.append({"role": "user", "content": text_from(pair[0], f"{at}[0]")})
        messages.append({"role": "assistant", "content": text_from(pair[1], f"{at}[1]")})
    return messages
