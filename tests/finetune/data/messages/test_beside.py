"""What every format reads beside its own columns."""

from typing import Any

import pytest
from one_form import assistant, read, user

from hybrid_ft.finetune.data.messages.beside import (
    is_blank,
    left_out,
    question_from,
    row_mark,
    row_tools,
    system_from,
    with_system,
)
from hybrid_ft.finetune.data.sources.rows import BadRow

TOOL = {"type": "function", "function": {"name": "search", "description": "d", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}


def test_a_system_text_under_any_name_also_in_parts() -> None:
    assert system_from({"system": "Be kind."}) == system_from({"system_prompt": "Be kind."}) == "Be kind."
    assert system_from({"system_message": "a"}) == system_from({"system_instruction": "a", "system": "a"}) == "a"
    assert system_from({"system": "a", "system_prompt": "a"}) == "a"
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]
    assert system_from({"system": parts}) == "Be kind."
    assert [system_from({"system": nothing}) for nothing in (None, "", [])] == [None] * 3
    with pytest.raises(BadRow, match="system and system_prompt differ; keep one"):
        system_from({"system": "a", "system_prompt": "b"})


def test_a_system_text_stands_first_and_once() -> None:
    user = {"role": "user", "content": "q"}
    system = {"role": "system", "content": "s"}
    assert with_system([user], None) == [user]
    assert with_system([user], "s") == with_system([system, user], "s") == [system, user]
    with pytest.raises(BadRow, match="there is a system turn as well"):
        with_system([system, user], "t")


def test_tools_under_any_name_but_not_two_that_differ() -> None:
    assert row_tools({"functions": [TOOL]}) == row_tools({"tools": [TOOL], "available_tools": [TOOL]}) == [TOOL]
    assert row_tools({"tools": None}) is None
    with pytest.raises(BadRow, match="tools and functions differ"):
        row_tools({"tools": [TOOL], "functions": [OTHER]})


def test_a_question_is_behind_its_history_and_above_what_it_is_about() -> None:
    unused: set[str] = set()
    history = [["earlier", "answer"]]
    values = {"input": "the passage", "context": "more", "history": history}
    assert question_from("What?", values, unused) == [
        {"role": "user", "content": "earlier"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": "What?\n\nthe passage\n\nmore"},
    ]
    assert not unused
    assert question_from("What?", {"input": " ", "context": {"a": 1}}, unused)[0]["content"] == "What?"
    assert unused == {"context"}


@pytest.mark.parametrize(("value", "blank"), [("null", True), (" [] ", True), ({}, True), (0, False), ("0", False)])
def test_what_a_table_writes_for_nothing_is_blank(value: Any, blank: bool) -> None:
    assert is_blank(value) is blank


def test_a_row_has_its_own_weight_and_may_not_be_left_out_by_it() -> None:
    assert row_mark({}) == 1.0 and row_mark({"weight": 0.25}) == 0.25 and row_mark({"train": "true"}) == 1.0
    with pytest.raises(
        BadRow, match="train: got false; the row says that it is not trained; .*without: {train: false}"
    ):
        row_mark({"train": False})


def test_a_system_text_in_parts() -> None:
    """Anthropic's and Bedrock's."""
    row = {"messages": [user("q"), assistant("a")]}
    for parts in ([{"text": "s"}, {"text": "t"}], [{"type": "text", "text": "st"}]):
        assert [turn["content"] for turn in read(row | {"system": parts}).messages] == ["st", "q", "a"]
    with pytest.raises(BadRow, match=r"^system\[0\].*: got a part of type 'image'"):
        read(row | {"system": [{"type": "image"}]})
    assert [turn["content"] for turn in read(row | {"system": []}).messages] == ["q", "a"]


def test_columns_that_no_format_read_are_named_in_whichever_case() -> None:
    read = frozenset(["messages", "system"])
    turns = [{"role": "user", "content": "Write of Rome. Be short."}, {"role": "assistant", "content": "a"}]
    values = {"messages": [], "system": "s", "System": "s", "Context": "c", "documents": ["d"], "history": [], "id": 7}
    assert left_out(values, read, turns) == ["System", "Context", "documents"]
    beside = {"prompt": " Write of Rome. ", "instruction": "Be French.", "question": None, "Query": "Write of Bern."}
    assert left_out(beside, read, turns) == ["instruction", "Query"]
    assert left_out(beside, read | {"instruction", "Query"}, turns) == left_out(beside, read, None) == []
