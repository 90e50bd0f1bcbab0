"""Rows that no mapping reads: what they are, the way on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.columns import row_format
from hybrid_ft.finetune.data.messages.requests import no_answers
from hybrid_ft.finetune.data.messages.row_forms import TURNS
from hybrid_ft.finetune.data.sources.rows import Row

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

_LOOKED_AT = 64
_TURN = "{role: user, content: ...}"
_CONVERSATION = f"{{messages: [{_TURN}, ...]}}"
_PARENTS = ("parent_id", "parent_message_id", "parent", "reply_to")
_QUESTION_LISTS = ("qas", "questions", "qa_pairs", "qa")
_DEEPEST = 3
_REPLIES = ("replies", "children")


def no_mapping(source: Source, rows: Sequence[Row], name: str) -> str:
    """What the first rows of a source are, and the way on; "" where that is not known."""
    return _list_inside(source, rows, name) or _by_columns(rows, name) or no_text(rows) or _turns_unsaid(rows)


def no_text(rows: Sequence[Row]) -> str:
    """The same for what holds neither rows nor pairs: token ids, trees of messages, articles with several questions
    each, requests without answers."""
    return _token_ids(rows) or _trees(rows) or _several_questions(rows) or no_answers(rows)


def _list_inside(source: Source, rows: Sequence[Row], name: str) -> str:
    """A JSON file that is one object, with rows in a list in it."""
    for column, value in rows[0].values.items() if len(rows) == 1 and name.endswith(".json") else ():
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            inner = [Row(number, item) for number, item in enumerate(value[:_LOOKED_AT], 1)]
            if row_format(source, inner) is not None:
                return f"the rows seem to be the {len(value):,} objects in {shown(column)}; write that list alone to a file"
    return ""


def _by_columns(rows: Sequence[Row], name: str) -> str:
    """A table as pandas writes it by columns, of which each seems a row, or with its rows in lists."""
    first = rows[0].values
    numbered = len(first) > 0 and all(key == str(number) for number, key in enumerate(first))
    if name.endswith(".json") and (numbered or {"columns", "index", "data"} <= first.keys()):
        return f"{name} is a table by columns; write it by rows: to_json(..., orient='records', lines=True) of pandas"
    return ""


def _token_ids(rows: Sequence[Row]) -> str:
    """Rows that are tokenized already."""
    for column, value in rows[0].values.items():
        if column.endswith("_ids") and isinstance(value, list) and value and all(type(one) is int for one in value):
            text = f"{column} holds token ids, and nothing says of which tokenizer and chat template"
            return f"{text}; give the texts: they become tokens once, and are kept for the next start (data.cache)"
    return ""


def _trees(rows: Sequence[Row]) -> str:
    """Messages of trees of replies, one a row, or whole trees."""
    path = f"write each path from a first message to a last one as a row, {_CONVERSATION}"
    pairs = "for pairs {prompt: [...], chosen: ..., rejected: ...} of two replies to one message"
    columns = {name.lower() for row in rows for name in row.values}
    parent = next((name for name in _PARENTS if name in columns), None)
    if parent is not None and columns & {"text", "content", "body"}:
        return f"rows are single messages of a tree, by {parent}; {path}; {pairs}"
    for value in (rows[0].values, *rows[0].values.values()):
        if isinstance(value, Mapping) and value and all(map(_is_node, value.values())):
            return f"rows are trees of messages, by children; {path}; {pairs}"
        if isinstance(value, Mapping) and (key := next((key for key in _REPLIES if _objects(value.get(key))), None)):
            return f"rows are trees of messages, by {key}; {path}; {pairs}"
    return ""


def _is_node(value: Any) -> bool:
    """Whether an object is a message of a tree whose messages are listed by their ids, as ChatGPT exports a chat."""
    return isinstance(value, Mapping) and "parent" in value and "children" in value


def _several_questions(rows: Sequence[Row]) -> str:
    """Passages with a list of questions each, also deeper: SQuAD's own files, CoQA, RACE."""
    where = next((found for row in rows if (found := _questions_in(row.values, "", 0))), "")
    if not where:
        return ""
    row = "{context: ..., question: ..., answer: ...}"
    return f"a row has several questions, in {where}; write each question as a row, {row}, with the passage it is about"


def _questions_in(value: Any, path: str, depth: int) -> str:
    """The path of the first list of questions in a row; ""."""
    if depth > _DEEPEST or not isinstance(value, Mapping):
        return ""
    for key, inner in value.items():
        if not isinstance(inner, list) or not inner:
            continue
        if str(key).lower() in _QUESTION_LISTS and isinstance(inner[0], str | Mapping):
            return f"{path}{key}"
        if found := _questions_in(inner[0], f"{path}{key}[].", depth + 1):
            return found
    return ""


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _turns_unsaid(rows: Sequence[Row]) -> str:
    """Rows of turns, or that are turns themselves, that do not say who speaks."""
    if all({"role", "content"} <= row.values.keys() or {"from", "value"} <= row.values.keys() for row in rows):
        return f"rows are turns, each alone; a row is a whole conversation, {_CONVERSATION}"
    for column in TURNS:
        for row in rows:
            items = row.values.get(column)
            if isinstance(items, list) and items and isinstance(items[0], dict):
                keys = ", ".join(list(items[0])[:6]) or "nothing"
                return f"{column} holds objects of {keys}, which do not say who speaks; a turn is {_TURN}"
    return ""
