"""Lists of messages that a table holds as text."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from hybrid_ft.finetune.data.limits import MEMORY, SECONDS, TookTooLong, limited
from hybrid_ft.finetune.data.messages.noticed import NO_LISTS, TEXT_LISTS
from hybrid_ft.finetune.data.messages.turns import ROLES, names_of
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow

Values = Mapping[str, Any]

_ALWAYS_LISTS = frozenset(["messages", "conversations", "conversation", "turns", "history"])
_QUESTIONS = frozenset(["prompt", "question", "instruction", "query"])
_TEXTS_OR_LISTS = _QUESTIONS | {"completion", "output", "response", "chosen", "rejected", "output_1", "output_2"}
_COLUMNS = _ALWAYS_LISTS | _TEXTS_OR_LISTS
_WHERE_ALONE = frozenset(["context", "input"])
"""Of a pair: its prompt where no other column is; elsewhere what a question is about, and so text."""
_ANY_LIST = re.compile(r"\s*(?:array\()?\[")
_OF_OBJECTS = re.compile(r"\s*(?:array\()?\[\s*\{")
_OF_MESSAGES = re.compile(r"""\s*(?:array\()?\[\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_OBJECT = re.compile(r"""\s*\{\s*["'](?:role|from|content|value)["']\s*:""")
_ARRAY = re.compile(r"\s*array\((?P<list>\[.*\])(?:,\s*dtype=object)?\)\s*", re.DOTALL)
# numpy prints no comma between the objects of an array; a string is passed over whole
_STRING_OR_GAP = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|\}\s+\{""", re.DOTALL)


def with_lists(values: Values) -> tuple[Values, dict[str, int]]:
    """A row with its lists of messages in the place of the texts that hold them, and what was noticed.

    A text that is a list of objects with role and content, or from and value, is those turns; other JSON stays
    text. So is an object of such lists, and a list of texts that each are one such object. Columns that hold nothing
    but turns take any list. Raises BadRow for text that no tokenizer can encode.
    """
    found: dict[str, Any] = {}
    noticed: dict[str, int] = {}
    alone = "chosen" in values and all(values.get(name) is None for name in _ALWAYS_LISTS | _QUESTIONS)
    for name, value in values.items():
        if name not in _COLUMNS and not (alone and name in _WHERE_ALONE):
            continue
        if isinstance(value, dict) and (turns := _of_columns(value)):
            found[name] = turns
        elif isinstance(value, list) and (turns := _of_texts(value, name)):
            found[name] = turns
            noticed[TEXT_LISTS] = 1
        if not isinstance(value, str):
            continue
        always = name in _ALWAYS_LISTS
        if not (_ANY_LIST if always else _OF_OBJECTS).match(value):
            continue
        inner = parsed(value, name)
        begins = not always and _OF_MESSAGES.match(value) is not None
        if isinstance(inner, list) and (always or _are_messages(inner, begins)):
            found[name] = inner
            noticed[TEXT_LISTS] = 1
        elif inner is None and begins:
            noticed[NO_LISTS] = 1
    return ({**values, **found} if found else values), noticed


def _of_columns(value: Values) -> list[Values]:
    """Turns that a table holds as an object of lists, as datasets' Sequence of objects does; none for other objects."""
    if not ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()):
        return []
    columns = [column for column in value.values() if column is not None]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        return []
    names = [name for name, column in value.items() if column is not None]
    return [dict(zip(names, turn, strict=True)) for turn in zip(*columns, strict=True)]


def _of_texts(items: list[Any], name: str) -> list[Values]:
    """Turns that a list holds as one text each; none where an item is anything else."""
    if not items or not all(isinstance(item, str) and item.lstrip()[:1] == "{" for item in items):
        return []
    turns = [parsed(item, f"{name}[{index}]") for index, item in enumerate(items)]
    return turns if _are_messages(turns, all(map(_OBJECT.match, items))) else []


def _are_messages(items: list[Any], begins: bool) -> bool:
    """Whether all have who speaks and what is said: roles of any name where the text ``begins`` like messages, else
    one at least that is known."""
    if not items or not all(map(_is_message, items)):
        return False
    return begins or any(str(item[names_of(item)[0]]).lower() in ROLES for item in items)


def _is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    if isinstance(item.get("role"), str):
        return any(item.get(key) is not None for key in ("content", "tool_calls", "function_call", "function_calls"))
    return isinstance(item.get("from"), str) and "value" in item


def parsed(text: str, name: str) -> Any:
    """The value of JSON, or of what Python printed; None where it is neither."""
    try:
        return strict_json.parse(text, f"{name}: ")
    except BadRow as bad:
        if bad.kind != "not JSON":
            raise
    if array := _ARRAY.fullmatch(text):
        text = array["list"]
    try:
        with limited(SECONDS, MEMORY), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none, in a text that is not a list after all
            value = ast.literal_eval(_STRING_OR_GAP.sub(lambda found: found[1] or "}, {", text.strip()))
        strict_json.check(value, text, f"{name}: ")
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, TookTooLong):
        return None
    return value
