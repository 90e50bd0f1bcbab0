"""Rows read the way a dataset card says."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hybrid_ft.errors import InputError, shown
from hybrid_ft.finetune.data.messages.cards import PLACE, Card, Turn, Turns, Value, load_card
from hybrid_ft.finetune.data.messages.conversation import (
    ROLES,
    TRAINING_FLAGS,
    Conversation,
    checked,
    text_from,
    tool_calls_from,
    tools_from,
    trained,
)
from hybrid_ft.finetune.data.messages.row_forms import Form, Values
from hybrid_ft.finetune.data.sources.rows import BadRow, repr_number
from hybrid_ft.finetune.recipe.nearest import did_you_mean

_MISSING = object()


def card_form(name: str, columns: Iterable[str]) -> Form:
    """The form that a card describes. ``columns``: those of the source, to refuse a card that fits none of its rows."""
    card = load_card(name)
    have = set(columns)
    optional = {column for value in card.values.values() for column in _as_list(value.column)}
    optional |= {turn.when for turn in card.messages if turn.when}
    missing = sorted(column for column in card.columns() - optional if column not in have and _head(column) not in have)
    if missing:
        fix = did_you_mean(missing[0], sorted(have))
        found = ", ".join(sorted(have)) or "none"
        raise InputError(f"card {name}: no column {missing[0]}{fix} (found {found})")
    used = frozenset(column if column in have else _head(column) for column in card.columns())
    return Form(f"card {name}", _in_words(card), used, lambda values: _conversation(card, values))


def _in_words(card: Card) -> str:
    if card.turns:
        return f"{card.turns.column} holds the turns ({card.turns.role}, {card.turns.content})"
    parts = []
    for turn in card.messages:
        names = [match[1] for match in PLACE.finditer(turn.content or "") if match[1]] + _as_list(turn.tool_calls)
        parts.append(f"{turn.role} from {', '.join(dict.fromkeys(names)) or 'the card'}")
    return "; ".join(parts)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _head(column: str) -> str:
    return column.split(".")[0]


def _at(values: Values, path: str) -> Any:
    """What lies at ``a.b.0``, a column of that very name first; _MISSING where there is nothing."""
    if path in values:
        return values[path]
    found: Any = values
    for part in path.split("."):
        if isinstance(found, Mapping) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isdecimal() and len(part) < 10 and int(part) < len(found):
            found = found[int(part)]
        else:
            return _MISSING
    return found


def _conversation(card: Card, values: Values) -> Conversation:
    row = Conversation([])
    labels: list[str] = []
    where = "the card's messages"
    if card.turns:
        row.messages = _listed_turns(card.turns, values, row.unused, row.untrained)
        where = card.turns.column
    else:
        for index, turn in enumerate(card.messages):
            if turn.when is None or _filled(card, values, turn.when):
                row.messages.append(_turn(card, turn, values, f"messages[{index}]"))
                labels.append(f"the card's messages[{index}]")
    if card.tools and (value := _at(values, card.tools)) is not _MISSING:
        row.tools = tools_from(value, card.tools)
    return checked(row, where, labels)


def _turn(card: Card, turn: Turn, values: Values, at: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": ""}
    if turn.content is not None:
        message["content"] = _filled_in(card, turn.content, values)
    if turn.reasoning is not None:
        message["reasoning_content"] = _filled_in(card, turn.reasoning, values)
    if turn.tool_calls is not None:
        calls = _at(values, turn.tool_calls)
        if calls is _MISSING or calls is None:
            raise BadRow("column missing", f"column {turn.tool_calls} is {_absent(calls)}; the card's {at} needs it")
        message["tool_calls"] = tool_calls_from(calls, turn.tool_calls)
    return message


def _filled_in(card: Card, text: str, values: Values) -> str:
    def put(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        name = match[1]
        return _made(card.values[name], name, values) if name in card.values else _text(_at(values, name), name)

    # one pass: what is put in is never looked at again
    return PLACE.sub(put, text)


def _filled(card: Card, values: Values, name: str) -> bool:
    if name in card.values:
        return bool(_made(card.values[name], name, values).strip())
    found = _at(values, name)
    return found is not _MISSING and found is not None and (not isinstance(found, str) or bool(found.strip()))


def _made(value: Value, name: str, values: Values) -> str:
    """The text of one of the card's ``values``."""
    columns = _as_list(value.column)
    found = next((item for column in columns if (item := _at(values, column)) is not _MISSING), _MISSING)
    if value.default is not None and (found is _MISSING or found in (None, "", [])):
        return value.default
    at = " or ".join(columns)
    if value.join is None and value.each is None:
        return _chosen(value, found, at)
    if found is _MISSING or found is None:
        raise BadRow("column missing", f"column {at} is {_absent(found)}; the card's values.{name} needs it")
    if not isinstance(found, list):
        raise BadRow("wrong type", f"{at}: got {shown(found)}; the card's values.{name} joins a list")
    items = [_chosen(value, item, f"{at}[{index}]") for index, item in enumerate(found)]
    if value.each is not None:
        items = [_written(value.each, item, index) for index, item in enumerate(items)]
    return ("" if value.join is None else value.join).join(items)


def _written(each: str, item: str, index: int) -> str:
    parts = {"item": item, "number": str(index + 1), "letter": _letter(index)}
    return PLACE.sub(lambda match: match[0][0] if match[1] is None else parts[match[1]], each)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else str(index + 1)


def _chosen(value: Value, found: Any, at: str) -> str:
    text = _text(found, at)
    if value.choose is None:
        return text
    if text not in value.choose:
        known = ", ".join(value.choose)
        raise BadRow("unknown choice", f"{at}: got {shown(found)}; the card knows {known}")
    return value.choose[text]


def _text(found: Any, at: str) -> str:
    """A value as the data has it: text as it is, numbers and true and false as JSON writes them."""
    if found is _MISSING:
        raise BadRow("column missing", f"column {at} is missing; the card needs it")
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int) or (isinstance(found, float) and math.isfinite(found)):
        return repr_number(found)
    if isinstance(found, list):
        raise BadRow("wrong type", f"{at}: got {shown(found)}; a list needs join in the card's values")
    return text_from(found, at)


def _absent(found: Any) -> str:
    return "missing" if found is _MISSING else "null"


def _listed_turns(turns: Turns, values: Values, unused: set[str], untrained: set[int]) -> list[dict[str, Any]]:
    items = _at(values, turns.column)
    if not isinstance(items, list):
        found = "missing" if items is _MISSING else shown(items)
        raise BadRow("wrong type", f"{turns.column}: got {found}; must be a list of turns")
    read = {_head(turns.role), _head(turns.content), turns.role, turns.content}
    messages = []
    for index, item in enumerate(items):
        at = f"{turns.column}[{index}]"
        if not isinstance(item, dict):
            raise BadRow(
                "wrong type", f"{at}: got {shown(item)}; a turn is an object with {turns.role} and {turns.content}"
            )
        theirs = _text(_at(item, turns.role), f"{at}.{turns.role}")
        role = ROLES.get(turns.roles.get(theirs, theirs))
        if role is None:
            known = ", ".join([*turns.roles, *ROLES])
            raise BadRow("unknown role", f"{at}.{turns.role}: got {shown(theirs)}; must be one of {known}")
        flags = {key: item[key] for key in TRAINING_FLAGS if key in item and key not in read}
        unused.update(f"{turns.column}[].{key}" for key in item.keys() - read - flags.keys())
        if not trained(flags, role, at):
            untrained.add(index)
        messages.append({"role": role, "content": text_from(_at_or_null(item, turns.content), f"{at}.{turns.content}")})
    return messages


def _at_or_null(values: Values, path: str) -> Any:
    found = _at(values, path)
    return None if found is _MISSING else found
