"""Formats of supervised rows, and how they become messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_ft.finetune.data.messages.beside import (
    QUESTION,
    SYSTEM,
    TOOLS,
    left_beside_turns,
    question_from,
    row_tools,
    system_from,
    with_system,
)
from hybrid_ft.finetune.data.messages.conversation import (
    Conversation,
    checked,
    messages_from,
    sharegpt_messages_from,
    text_from,
)
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

Values = Mapping[str, Any]
Messages = list[dict[str, Any]]
_BESIDE = (*SYSTEM, *TOOLS)
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
        return Form(
            "prompt-completion", reads, frozenset({"prompt", "completion", *_BESIDE, *QUESTION}), _prompt_completion
        )
    if wanted in (None, "alpaca") and {"instruction", "output"} <= columns:
        both = "instruction and input, a blank line between, are" if "input" in columns else "instruction is"
        reads = f"{both} the user's turn, output the assistant's"
        return Form("alpaca", reads, frozenset({"instruction", "output", *_BESIDE, *QUESTION}), _alpaca)
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
        turns = turns_from(_column(values, column), column, row.unused, row.untrained)
        _set_messages(row, with_system(turns, system_from(values)), turns)
        row.unused |= left_beside_turns(values)
        row.tools = row_tools(values)
        labels = [column] * (len(row.messages) - len(turns)) + [f"{column}[{index}]" for index in range(len(turns))]
        return checked(row, column, labels)

    names = "from, value" if kind == "sharegpt" else "role, content"
    return Form(kind, f"{column} holds the turns ({names})", frozenset({column, *_BESIDE}), convert)


def _set_messages(row: Conversation, messages: Messages, last: Messages) -> None:
    """Messages that end in ``last``, of which ``untrained`` are known by their index."""
    ahead = len(messages) - len(last)
    row.messages, row.untrained = messages, {index + ahead for index in row.untrained}


def _column(values: Values, name: str) -> Any:
    if name not in values:
        found = ", ".join(map(str, list(values)[:8]))
        raise BadRow("column missing", f"column {name} is missing (found {found or 'none'})")
    return values[name]


def _prompt_completion(values: Values) -> Conversation:
    row = Conversation([])
    labels: list[str] = []
    prompt = _column(values, "prompt")
    if isinstance(prompt, list):
        row.messages = messages_from(prompt, "prompt", row.unused, row.untrained)
        row.unused |= left_beside_turns(values)
        labels = [f"prompt[{index}]" for index in range(len(prompt))]
    else:
        row.messages = question_from(text_from(prompt, "prompt"), values, row.unused)
        labels = [*(["history"] * (len(row.messages) - 1)), "prompt"]
    asked = row.messages
    _set_messages(row, with_system(asked, system_from(values)), asked)
    labels = ["system"] * (len(row.messages) - len(asked)) + labels
    completion = _column(values, "completion")
    if isinstance(completion, list):
        untrained: set[int] = set()
        turns = messages_from(completion, "completion", row.unused, untrained)
        row.untrained |= {len(row.messages) + index for index in untrained}
        labels += [f"completion[{index}]" for index in range(len(turns))]
    else:
        turns = [{"role": "assistant", "content": text_from(completion, "completion")}]
        labels.append("completion")
    row.messages = [*row.messages, *turns]
    row.tools = row_tools(values)
    return checked(row, "prompt and completion", labels)


def _alpaca(values: Values) -> Conversation:
    row = Conversation([])
    asked = question_from(text_from(_column(values, "instruction"), "instruction"), values, row.unused)
    answer = {"role": "assistant", "content": text_from(_column(values, "output"), "output")}
    row.messages = [*with_system(asked, system_from(values)), answer]
    row.tools = row_tools(values)
    labels = [f"turn {index}" for index in range(len(row.messages) - 2)] + ["instruction", "output"]
    return checked(row, "instruction and output", labels)
