"""Standard JSON, and tools and their calls, decided a second time, as strict_rows does with rows."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64


class Wrong(Exception):
    pass


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def need(condition: object) -> None:
    if not condition:
        raise Wrong


def a(kind: type, value: Any) -> Any:
    need(isinstance(value, kind))
    return value


def strict(text: str) -> Any:
    """Standard JSON: no key twice, no NaN or infinity, no half characters, MAX_DEPTH."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs))
        return dict(pairs)

    def finite(number: str) -> float:
        need(number.lstrip("-")[:1].isdigit() and math.isfinite(float(number)))
        return float(number)

    level = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', text):
        level += bool(bracket[0]) - bool(bracket[1])
        deepest = max(deepest, level)
    need(deepest <= MAX_DEPTH)
    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Wrong from None
    return value


def calls_of(value: Any) -> tuple[tuple[str, str, Any], ...]:
    """Calls as objects, as JSON text, or a list of either."""
    value = strict(value) if isinstance(value, str) else value
    items = value if isinstance(value, list) else [value]
    need(items)
    calls = []
    for item in items:
        call = a(dict, strict(item) if isinstance(item, str) else item)
        function = call["function"] if isinstance(call.get("function"), dict) else call
        need(a(str, function.get("name")).strip())
        given = function["arguments"] if "arguments" in function else function.get("parameters")
        if isinstance(given, str):
            given = strict(given) if given.strip() else {}
        name = call.get("id") if isinstance(call.get("id"), str) else None
        calls.append((function["name"], canonical(a(dict, {} if given is None else given)), name))
    return tuple(calls)


def tools_of(row: dict[str, Any]) -> Any:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = strict(tools) if tools.strip() else None
    if tools is None or tools == []:
        return None
    return [padded(a(dict, strict(tool) if isinstance(tool, str) else tool)) for tool in a(list, tools)]


def padded(value: Any, schema: bool = False) -> Any:
    """A tool without the nulls that no schema has a use for."""
    if isinstance(value, list):
        return [padded(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        if item is None and key not in ("default", "const", "example"):
            continue
        if key in ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas") and isinstance(
            item, dict
        ):
            kept[key] = {name: padded(inner) for name, inner in item.items() if inner is not None}
        else:
            kept[key] = item if key in ("default", "const", "example", "examples", "enum") else padded(item)
    return kept


def settled(turns: list[Any], tools: Any) -> list[Any]:
    """Calls without the null arguments that their tool's schema does not name."""
    schemas = {}
    for tool in tools or []:
        inner = tool["function"] if isinstance(tool.get("function"), dict) else tool
        of = next((inner[key] for key in ("parameters", "input_schema", "arguments") if key in inner), None)
        if isinstance(of, dict) and of and "properties" not in of and all(isinstance(one, dict) for one in of.values()):
            of = {"properties": of}
        if isinstance(inner.get("name"), str):
            schemas[inner["name"]] = of if isinstance(of, dict) else {}

    def bare(value: Any, schema: Any) -> Any:
        schema = schema if isinstance(schema, dict) else {}
        if isinstance(value, list):
            return [bare(item, schema.get("items")) for item in value]
        if not isinstance(value, dict):
            return value
        names = schema["properties"] if isinstance(schema.get("properties"), dict) else {}
        keys = ("$ref", "anyOf", "oneOf", "allOf", "additionalProperties", "patternProperties")
        rest = schema if any(schema.get(key) for key in keys) else None
        return {
            key: bare(item, names.get(key, rest))
            for key, item in value.items()
            if item is not None or key in names or rest
        }

    return [
        turn._replace(
            calls=tuple(
                (name, canonical(bare(json.loads(given), schemas.get(name))), mark) for name, given, mark in turn.calls
            )
        )
        for turn in turns
    ]
