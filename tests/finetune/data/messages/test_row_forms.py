"""Rows to conversations: which form, from which columns, and what is wrong with a row, by field."""

from typing import Any

import pytest
from one_form import CALL, assistant, read, said, user

from hybrid_ft.finetune.data.messages.row_forms import recognise
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

FORMS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", {"messages": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    ("messages", {"conversations": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    ("prompt-completion", {"prompt": user("q"), "completion": assistant("a")}, [user("q"), assistant("a")]),
    (
        "messages",
        {"messages": [user([{"type": "text", "text": "q"}, {"type": "text", "value": "r"}]), assistant("a")]},
        [user("qr"), assistant("a")],
    ),
    (
        "messages",
        {
            "messages": [
                user("q"),
                assistant(
                    [
                        {"type": "reasoning", "value": "t"},
                        {"type": "tool_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
                    ]
                ),
                {"role": "function", "content": "r", "name": "f"},
                assistant("a", thinking="t"),
            ]
        },
        [
            user("q"),
            assistant("", reasoning_content="t", tool_calls=[CALL]),
            {"role": "tool", "content": "r", "name": "f"},
            assistant("a", reasoning_content="t"),
        ],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "", "functions": "f()"},
                user("q"),
                {"role": "assistant", "content": None, "function_calls": "f(x=1)"},
                {"role": "environment", "content": ""},
                {"role": "assistant", "function_call": {"name": "f", "arguments": {"x": 1}}},
            ]
        },
        [
            {"role": "system", "content": "", "functions": "f()"},
            user("q"),
            assistant("", function_calls="f(x=1)"),
            {"role": "environment", "content": ""},
            assistant("", tool_calls=[CALL]),
        ],
    ),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "a"},
            ],
        },
        [
            {"role": "system", "content": "s"},
            user("q"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": "r"},
            assistant("a"),
        ],
    ),
    (
        "sharegpt",
        {"messages": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        [user("q"), assistant("a")],
    ),
    ("prompt-completion", {"prompt": "q", "completion": " a"}, [user("q"), assistant(" a")]),
    (
        "prompt-completion",
        {"prompt": [{"role": "system", "content": "s"}, user("q")], "completion": [assistant("a")]},
        [{"role": "system", "content": "s"}, user("q"), assistant("a")],
    ),
    ("alpaca", {"instruction": "i", "input": "x", "output": "a"}, [user("i\n\nx"), assistant("a")]),
    ("alpaca", {"instruction": "i", "input": " ", "output": "a"}, [user("i"), assistant("a")]),
    ("alpaca", {"instruction": "i", "input": None, "output": "a"}, [user("i"), assistant("a")]),
    ("alpaca", {"instruction": "", "input": "x", "output": "a"}, [user("x"), assistant("a")]),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "system": "s", "history": [["q", "r"]]},
        [{"role": "system", "content": "s"}, user("q"), assistant("r"), user("i"), assistant("a")],
    ),
]


@pytest.mark.parametrize(("form", "values", "messages"), FORMS)
def test_forms(form: str, values: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    found = recognise([Row(1, values)], None)
    assert found is not None and found.name == form
    assert found.convert(values).messages == messages
    asked = recognise([Row(1, values)], form)
    assert asked is not None and asked.convert(values).messages == messages


def test_the_first_rows_decide_together() -> None:
    rows = [Row(1, {"instruction": "i", "output": "a"}), Row(2, {"instruction": "i", "input": "x", "output": "a"})]
    form = recognise(rows, None)
    assert form is not None and "instruction and input" in form.reads
    both = {"prompt": "p", "completion": "c", "messages": [user("q"), assistant("a")]}
    assert recognise([Row(1, both)], None).name == "messages"  # type: ignore[union-attr]
    assert recognise([Row(1, both)], "prompt-completion").name == "prompt-completion"  # type: ignore[union-attr]
    assert recognise([Row(1, {"text": "x"})], None).name == "text"  # type: ignore[union-attr]
    assert recognise([Row(1, {"text": "x", "label": 1})], None) is None
    assert recognise([Row(1, {"prompt": "p", "completion": "c"})], "alpaca") is None


@pytest.mark.parametrize("tools", [None, "", " ", "[]", [], "null"])
def test_no_tools(tools: Any) -> None:
    assert read({"messages": [user("q"), assistant("a")], "tools": tools}).tools is None


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]', ['{"name": "f"}']])
def test_tools(tools: Any) -> None:
    assert read({"prompt": "q", "completion": "a", "tools": tools}).tools == [{"name": "f"}]


def test_what_stands_beside_query_and_response() -> None:
    made = read({"system": "s", "query": "r", "response": "b", "history": [["q", "a"]]})
    wanted = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r"), assistant("b")]
    assert made.messages == wanted and made.unused == set()


def test_what_tables_write_for_a_missing_text_is_counted() -> None:
    for text, count in (("nan", 1), ("NaN", 1), ("<NA>", 1), ("None", 1), ("null", 1), ("Nan bread", 0), ("none", 0)):
        assert read({"prompt": "q", "completion": text}).noticed.get("turns_that_are_nan_or_null", 0) == count, text


def test_places_of_pictures_without_any_are_counted() -> None:
    for text, count in (("<image>\nWhat is it?", 1), ("hear <audio>", 1), ("an image", 0), ("<img>", 0)):
        noticed = read({"prompt": text, "completion": "a"}).noticed
        assert noticed.get("turns_with_placeholders_of_media", 0) == count, text


def test_a_column_that_some_rows_lack() -> None:
    form = recognise([Row(1, {"prompt": "q", "completion": "a"})], None)
    assert form is not None
    with pytest.raises(BadRow, match=r"column completion is missing \(found prompt, answer\)"):
        form.convert({"prompt": "q", "answer": "a"})


@pytest.mark.parametrize("odd", ["\u2028", "\x1b[31m", "\n", "\x85"])
def test_a_reason_is_one_printable_line_whatever_a_row_holds(odd):
    text = str(BadRow("column missing", f"column messages is missing (found {odd}messages)"))
    assert text.isprintable() and text.splitlines() == [text] and "messages is missing" in text


def test_columns_that_hold_nothing_do_not_say_the_form() -> None:
    nothing = {"messages": None, "prompt": None, "completion": None, "query": None}
    assert read(nothing | {"instruction": "q", "output": "a"}).messages == [user("q"), assistant("a")]
    assert read({"messages": None, "conversations": [said("human", "q"), said("gpt", "a")]}).messages[0] == user("q")
