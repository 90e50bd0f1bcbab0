"""Tools and their calls, without the nulls that a table put in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.data.messages.noticed import (
    CONSECUTIVE,
    IN_SYSTEM,
    MISSING_AS_TEXT,
    PADDING,
    PLACEHOLDERS,
    UNLISTED,
)
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]]

_NULL_MEANS_NULL = frozenset(["default", "const", "example"])
"""Keys of a schema whose value may be null."""
_VALUES = _NULL_MEANS_NULL | {"enum", "examples"}
_MISSING = frozenset(["nan", "NaN", "<NA>", "None", "null", "NULL"])
"""How tables write a text that is missing, if not by an empty cell."""
_PLACEHOLDERS = ("<image>", "<audio>", "<video>")
"""What stands in a text for what lies in a column beside it, which is refused where it is there."""
_BY_NAME = frozenset(["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"])
_ELSEWHERE = ("$ref", "anyOf", "oneOf", "allOf", "additionalProperties", "patternProperties")
"""Keys by which a schema takes names that do not stand in its properties."""


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
    name = function.get("name")
    arguments: Any = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
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


def tools_from(value: Any, at: str = "tools") -> Tools | None:
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


def settled(messages: Messages, tools: Tools | None) -> tuple[Messages, Tools | None, dict[str, int]]:
    """Messages and tools without the nulls that a table put in, and what was noticed of them.

    A table has every key in every row, null where the row had none. A null in a tool goes where JSON Schema has no use
    for one; a null argument where the schema of the tool that is called does not name it.
    """
    padding = _Padding()
    tools = tools and [padding.out_of_schema(tool) for tool in tools]
    schemas = {name: _parameters(tool) for tool in tools or () if (name := _name(tool)) is not None}
    settled_messages = [
        message | {"tool_calls": [_called(call, schemas, padding) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    ]
    noticed = {PADDING: padding.count, CONSECUTIVE: in_a_row(messages)} | _unlisted(messages, schemas)
    texts = [message["content"] for message in messages]
    noticed[MISSING_AS_TEXT] = sum(text in _MISSING for text in texts)
    noticed[PLACEHOLDERS] = sum(any(one in text for one in _PLACEHOLDERS) for text in texts)
    return settled_messages, tools, {kind: count for kind, count in noticed.items() if count}


def in_a_row(messages: Sequence[Mapping[str, Any]]) -> int:
    """The assistant's turns that stand right behind another of its turns."""
    roles = [message["role"] for message in messages]
    return sum(before == after == "assistant" for before, after in pairwise(roles))


def _unlisted(messages: Messages, schemas: Mapping[str, Any]) -> dict[str, int]:
    """Calls of tools that are not among a row's own, apart from those that its system text names."""
    names = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    missing = [name for name in names if name not in schemas]
    if not missing:
        return {}
    system = [message for message in messages if message["role"] == "system"]
    written = "\n".join(text for message in system for text in (message["content"], message.get("functions", "")))
    in_system = sum(name in written for name in missing)
    return {UNLISTED: len(missing) - in_system, IN_SYSTEM: in_system}


def _called(call: dict[str, Any], schemas: Mapping[str, Any], padding: _Padding) -> dict[str, Any]:
    function = call["function"]
    arguments = padding.out_of_arguments(function["arguments"], schemas.get(function["name"], {}))
    return call | {"function": function | {"arguments": arguments}}


class _Padding:
    """Takes nulls out and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def out_of_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """A schema, or a tool around one: its nulls are neither keywords nor properties."""
        kept: dict[str, Any] = {}
        for key, value in schema.items():
            if value is None and key not in _NULL_MEANS_NULL:
                self.count += 1
            elif key in _BY_NAME and isinstance(value, dict):
                kept[key] = {name: self._inside(inner) for name, inner in value.items() if inner is not None}
                self.count += len(value) - len(kept[key])
            else:
                kept[key] = value if key in _VALUES else self._inside(value)
        return kept

    def _inside(self, value: Any) -> Any:
        if isinstance(value, dict):
            return self.out_of_schema(value)
        return [self._inside(item) for item in value] if isinstance(value, list) else value

    def out_of_arguments(self, value: Any, schema: Any) -> Any:
        """A call's arguments by the schema of its tool's parameters."""
        if isinstance(value, list):
            items = schema.get("items") if isinstance(schema, dict) else None
            return [self.out_of_arguments(item, items) for item in value]
        if not isinstance(value, dict):
            return value
        schema = schema if isinstance(schema, dict) else {}
        names = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
        elsewhere = any(schema.get(key) for key in _ELSEWHERE)
        kept = {key: item for key, item in value.items() if item is not None or key in names or elsewhere}
        self.count += len(value) - len(kept)
        # what stands elsewhere in a schema may name anything further in
        return {
            key: self.out_of_arguments(item, names.get(key, schema if elsewhere else {})) for key, item in kept.items()
        }


def _name(tool: Mapping[str, Any]) -> str | None:
    name = _definition(tool).get("name")
    return name if isinstance(name, str) else None


def _definition(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    return tool["function"] if isinstance(tool.get("function"), dict) else tool


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a tool's parameters; what is a plain object of names becomes one."""
    definition = _definition(tool)
    found = next((definition[key] for key in ("parameters", "input_schema", "arguments") if key in definition), None)
    if not isinstance(found, dict):
        return {}
    if "properties" not in found and found and all(isinstance(value, dict) for value in found.values()):
        return {"properties": found}
    return found


def _check_json(value: Any, at: str) -> None:
    """Refuse what JSON cannot hold: dates, bytes and NaN from typed columns."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadRow("wrong type", f"{at}: cannot be written as JSON ({error})") from None


def _an_object(value: Any, at: str, rule: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRow("wrong type", f"{at}: got {shown(value)}; {rule}")
    return value
