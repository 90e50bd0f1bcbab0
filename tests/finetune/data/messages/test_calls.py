"""Tools and calls without the nulls that a table put into them, and calls of what a row does not list."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hybrid_ft.finetune.data.messages.calls import in_a_row, settled
from hybrid_ft.finetune.data.messages.noticed import CONSECUTIVE, IN_SYSTEM, PADDING, UNLISTED
from hybrid_ft.finetune.data.messages.row_forms import recognise
from hybrid_ft.finetune.data.sources.rows import Row
from hybrid_ft.finetune.data.sources.source import open_source
from hybrid_ft.finetune.recipe.data_section import Source


def tool(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": list(calls)},
        {"role": "tool", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]


UNIT = {"type": "string", "enum": ["metric", None], "default": None}
ROWS = [
    {"messages": calling(call("wind", place="Ulm", unit=None)), "tools": [tool("wind", ["place"], place={"type": "string"}, unit=UNIT)]},
    {"messages": calling(call("sum", of=[1.0, 2.0])), "tools": [tool("sum", ["of"], of={"type": "array", "items": {"type": "number"}})]},
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "tools": None},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_that_went_through_a_table_are_the_rows_as_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    table = Dataset.from_list(ROWS)
    table.to_parquet(path) if kind == "parquet" else table.to_json(path)
    form = recognise([Row(1, ROWS[0])], None)
    assert form is not None
    padding = 0
    for row, written in zip(open_source(Source(path=str(path))).rows, ROWS, strict=True):
        assert isinstance(row, Row)
        made, plain = form.convert(row.values), form.convert(written)
        assert (made.messages, made.tools) == (plain.messages, plain.tools)
        assert PADDING not in plain.noticed
        padding += made.noticed.get(PADDING, 0)
    # of the first: argument and property "of"; of the second: place and unit, both times
    assert padding == 6
    assert (
        json.loads(json.dumps(ROWS[0]["tools"]))[0]["function"]["parameters"]["properties"]["unit"]["default"] is None
    )


@pytest.mark.parametrize(
    ("schema", "arguments", "kept"),
    [
        ({"properties": {"a": {"type": "string"}}}, {"a": None, "b": None}, {"a": None}),
        ({"properties": {"a": {"properties": {"b": {}}}}}, {"a": {"b": None, "c": None}}, {"a": {"b": None}}),
        ({"properties": {"a": {"items": {"properties": {"b": {}}}}}}, {"a": [{"b": None, "c": None}, None]}, {"a": [{"b": None}, None]}),
        ({"properties": {}, "additionalProperties": True}, {"b": None}, {"b": None}),
        ({"properties": {}, "additionalProperties": False}, {"b": None}, {}),
        ({"$ref": "#/x"}, {"b": {"c": None}}, {"b": {"c": None}}),
        ({"town": {"type": "str"}}, {"town": None, "b": None}, {"town": None}),
        ({}, {"a": 1, "b": None}, {"a": 1}),
        (None, {"a": None}, {}),
    ],
)  # fmt: skip
def test_a_null_that_the_tools_schema_does_not_name_goes(schema: Any, arguments: Any, kept: Any) -> None:
    tools = [{"name": "f", "parameters": schema}]
    messages, _, noticed = settled(calling(call("f", **arguments)), tools)
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == kept
    assert bool(noticed.get(PADDING)) == (kept != arguments or schema is None)


def test_nulls_of_a_schema_that_mean_something_stay() -> None:
    schema = {
        "properties": {
            "default": {"const": None},
            "b": {"default": {"x": None}, "enum": [None, {"y": None}], "examples": [{"z": None}], "title": None},
            "gone": None,
        },
        "$defs": {"x": None, "y": {"items": None}},
        "description": None,
    }
    _, tools, noticed = settled([], [{"name": "f", "strict": None, "parameters": schema}])
    kept = {"default": {"const": None}, "b": schema["properties"]["b"] | {}}  # type: ignore[operator,index]
    del kept["b"]["title"]
    assert tools == [{"name": "f", "parameters": {"properties": kept, "$defs": {"y": {}}}}]
    assert noticed == {PADDING: 6}


def test_calls_of_what_a_row_does_not_list_are_counted() -> None:
    two = calling(call("f"), call("g", a=1))
    assert settled(two, [{"name": "f"}, {"name": "g"}])[2] == {}
    assert settled(two, [{"type": "function", "function": {"name": "f"}}])[2] == {UNLISTED: 1}
    assert settled(two, None)[2] == {UNLISTED: 2}
    system = [{"role": "system", "content": "Tools: [f(), h()]"}]
    assert settled([*system, *two], None)[2] == {UNLISTED: 1, IN_SYSTEM: 1}


@pytest.mark.parametrize("column", ["tools", "functions", "available_tools"])
def test_tools_under_any_of_their_names(column: str) -> None:
    old = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "r"},
        {"role": "assistant", "content": "a"},
    ]
    values = {column: [{"name": "f", "parameters": {"properties": {"a": {}}}}], "messages": old}
    form = recognise([Row(1, values)], None)
    assert form is not None and column in form.columns
    made = form.convert(values)
    assert made.tools == values[column] and made.noticed == {}
    assert made.messages[1]["tool_calls"] == [call("f", a=1)] and made.messages[2]["role"] == "tool"


def test_assistant_turns_in_a_row_are_counted() -> None:
    roles = ["user", "assistant", "assistant", "tool", "assistant", "assistant", "assistant"]
    turns = [{"role": role, "content": "x"} for role in roles]
    assert in_a_row(turns) == 3
    assert settled(turns, None)[2] == {CONSECUTIVE: 3}
