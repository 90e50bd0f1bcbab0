"""Formats of supervised rows, and how they become messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybrid_ft.finetune.data.messages.beside import (
    BESIDE,
    QUESTION,
    left_beside_turns,
    question_from,
    row_mark,
    row_tools,
    system_from,
    with_system,
)
from hybrid_ft.finetune.data.messages.conversation import Conversation, finished
from hybrid_ft.finetune.data.messages.plain_text import PlainText, is_plain, plain_text
from hybrid_ft.finetune.data.messages.training_marks import Weights, scaled
from hybrid_ft.finetune.data.messages.turns import (
    CHAT,
    SHAREGPT,
    messages_from,
    names_of,
    refuse_media,
    text_from,
    turns_from,
)
from hybrid_ft.finetune.data.sources.rows import BadRow, Row, columns_of

Values = Mapping[str, Any]
Messages = list[dict[str, Any]]
TURNS = ("messages", "conversations", "conversation")
"""Columns of turns."""


@dataclass(frozen=True)
class Form:
    """How a source's rows are read. ``reads``: the columns that are used, in words; ``columns``: their names."""

    name: str
    reads: str
    columns: frozenset[str]
    convert: Callable[[Values], Conversation | PlainText]


def recognise(rows: Iterable[Row], wanted: str | None) -> Form | None:
    """The form of a source from its first rows, or None. ``wanted`` is the recipe's ``format``."""
    rows = list(rows)
    forms = (_recognised(rows, columns, wanted) for columns in columns_of(rows))
    return next((form for form in forms if form is not None), None)


def _recognised(rows: list[Row], columns: set[str], wanted: str | None) -> Form | None:
    turns = next((name for name in TURNS if name in columns and (wanted or _holds_turns(rows, name))), None)
    if turns and wanted in (None, "messages", "sharegpt"):
        return _turn_form(turns, wanted or _kind_of_turns(rows, turns), fixed=wanted is not None)
    if wanted in (None, "prompt-completion") and {"prompt", "completion"} <= columns:
        reads = "prompt is the user's turn, completion the assistant's"
        return Form(
            "prompt-completion",
            reads,
            BESIDE | {"prompt", "completion", *QUESTION},
            lambda values: _answered(values, "prompt", "completion"),
        )
    if wanted in (None, "prompt-completion") and {"query", "response"} <= columns:
        return Form(
            "prompt-completion",
            "query is the user's turn, response the assistant's",
            BESIDE | {"query", "response", *QUESTION},
            lambda values: _answered(values, "query", "response"),
        )
    if wanted in (None, "alpaca") and {"instruction", "output"} <= columns:
        both = "instruction and input, a blank line between, are" if "input" in columns else "instruction is"
        reads = f"{both} the user's turn, output the assistant's"
        return Form(
            "alpaca",
            reads,
            BESIDE | {"instruction", "output", *QUESTION},
            lambda values: _answered(values, "instruction", "output"),
        )
    if (wanted == "text" and "text" in columns) or (wanted is None and is_plain(columns)):
        return Form("text", "every token of text is trained, and the one that ends it", frozenset({"text"}), plain_text)
    return None


def needed(wanted: str) -> str:
    """The columns that a form cannot be without, in words."""
    return {
        "messages": "messages",
        "sharegpt": "conversations",
        "prompt-completion": "prompt and completion",
        "alpaca": "instruction and output",
        "text": "text",
    }[wanted]


def _holds_turns(rows: list[Row], column: str) -> bool:
    """Whether a column is one of turns, as far as its first row of objects says: not where none has a key of turns."""
    for row in rows:
        items = row.values.get(column)
        if isinstance(items, list) and items and all(isinstance(item, dict) for item in items):
            return any(item.keys() & {"role", "from", "content", "value"} for item in items)
    return True


def _kind_of_turns(rows: list[Row], column: str) -> str:
    for row in rows:
        turns = row.values.get(column)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict):
            return "sharegpt" if names_of(turns[0]) == SHAREGPT else "messages"
    return "sharegpt" if column.startswith("conversation") else "messages"


def _turn_form(column: str, kind: str, fixed: bool) -> Form:
    """``fixed``: every turn has the names of this form, whichever else it has too."""
    names = SHAREGPT if kind == "sharegpt" else CHAT

    def convert(values: Values) -> Conversation:
        row = Conversation([])
        turns = messages_from(_column(values, column), column, row.unused, row.weights, names if fixed else None)
        _set_messages(row, with_system(turns, system_from(values)), turns)
        row.unused |= left_beside_turns(values)
        labels = [column] * (len(row.messages) - len(turns)) + [f"{column}[{index}]" for index in range(len(turns))]
        return _done(row, values, column, labels)

    return Form(kind, f"{column} holds the turns ({', '.join(names)})", BESIDE | {column}, convert)


def _set_messages(row: Conversation, messages: Messages, last: Messages) -> None:
    """Messages that end in ``last``, of which ``weights`` are known by their index."""
    ahead = len(messages) - len(last)
    row.messages, row.weights = messages, {index + ahead: weights for index, weights in row.weights.items()}


def _column(values: Values, name: str) -> Any:
    if name not in values:
        found = ", ".join(map(str, list(values)[:8]))
        raise BadRow("column missing", f"column {name} is missing (found {found or 'none'})")
    return values[name]


def _answered(values: Values, asked: str, answered: str) -> Conversation:
    """A row of a question and an answer, each a text, a turn or a list of turns."""
    row = Conversation([])
    question, answer = _column(values, asked), _column(values, answered)
    if isinstance(question, list | dict):
        row.messages = turns_from(question, asked, row.unused, row.weights)
        row.unused |= left_beside_turns(values)
        labels = [f"{asked}[{index}]" for index in range(len(row.messages))]
    else:
        row.messages = question_from(text_from(question, asked), values, row.unused)
        labels = [*(["history"] * (len(row.messages) - 1)), asked]
    turns = row.messages
    _set_messages(row, with_system(turns, system_from(values)), turns)
    labels = ["system"] * (len(row.messages) - len(turns)) + labels
    if isinstance(answer, list | dict):
        of_answer: dict[int, Weights] = {}
        turns = turns_from(answer, answered, row.unused, of_answer)
        row.weights |= {len(row.messages) + index: weights for index, weights in of_answer.items()}
        labels += [f"{answered}[{index}]" for index in range(len(turns))]
    else:
        turns = [{"role": "assistant", "content": text_from(answer, answered)}]
        labels.append(answered)
    row.messages = [*row.messages, *turns]
    return _done(row, values, f"{asked} and {answered}", labels)


def _done(row: Conversation, values: Values, where: str, labels: list[str]) -> Conversation:
    """The row with what stands beside its turns, checked."""
    refuse_media(values)
    if (weight := row_mark(values)) != 1:
        answers = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
        row.weights = {index: scaled(row.weights.get(index, [(None, 1.0)]), weight) for index in answers}
    row.tools = row_tools(values)
    return finished(row, where, labels)
