"""Requests to a model and its responses, as files of them lie about: advice that reads whole
conversations, and only those."""

from pathlib import Path
from typing import Any

import advice_helpers as advice
import pytest

from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source

ASK = {"role": "user", "content": "q"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
ANSWER = {"role": "assistant", "content": "a"}
RESPONSE = {"choices": [{"index": 0, "message": ANSWER, "finish_reason": "stop"}], "usage": {"total_tokens": 9}}
BATCH = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions"}


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        (BATCH | {"body": {"model": "m", "messages": [ASK, ANSWER], "max_tokens": 9}}, ["q", "a"]),
        (BATCH | {"body": {"model": "m", "messages": [ASK, ANSWER], "tools": TOOLS}}, ["q", "a"]),
        ({"custom_id": "1", "params": {"system": "s", "messages": [ASK, ANSWER]}}, ["s", "q", "a"]),
        ({"request": {"messages": [ASK]}, "response": RESPONSE}, ["q", "a"]),
        ({"request": {"body": {"messages": [ASK]}}, "response": {"body": RESPONSE}}, ["q", "a"]),
        ({"input": {"messages": [ASK]}, "output": {"content": [{"type": "text", "text": "a"}]}}, ["q", "a"]),
        ({"inputs": {"messages": [ASK]}, "outputs": {"generations": [{"text": "a"}]}}, ["q", "a"]),
        ({"input": {"messages": [ASK]}, "output": ANSWER}, ["q", "a"]),
        ({"request": {"messages": [ASK]}, "response": {"model": "m", "message": ANSWER}}, ["q", "a"]),
    ],
)
def test_whole_conversations_are_read(row: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    (made,), _ = advice.follow(tmp_path, [row])
    assert [turn["content"] for turn in made.messages] == texts
    assert made.tools == row.get("body", {}).get("tools")


@pytest.mark.parametrize(
    "row",
    [
        BATCH | {"body": {"messages": [ASK, ANSWER], "functions": TOOLS}},
        {
            "request": {"messages": [ASK], "tools": TOOLS},
            "response": {"choices": [{"message": ANSWER | {"tool_calls": [1]}}]},
        },
    ],
)
def test_no_mapping_is_advised_that_would_leave_out_tools_or_calls(row: dict[str, Any], tmp_path: Path) -> None:
    assert "set columns" not in advice.message(advice.written(tmp_path, [row]), "rows")


def test_requests_and_answers_of_two_files_are_to_be_joined(tmp_path: Path) -> None:
    """As the two messages say: the rows they ask for are read."""
    requests = [BATCH | {"custom_id": str(n), "body": {"messages": [ASK | {"content": f"q{n}"}]}} for n in range(2)]
    answers = [
        {"id": "b", "custom_id": str(n), "response": {"status_code": 200, "body": RESPONSE}, "error": None}
        for n in (1, 0)
    ]
    text = advice.message(advice.written(tmp_path, requests), "rows")
    assert "rows are requests without their answers" in text and "by their custom_id" in text
    assert "rows are answers without what they answer" in advice.message(advice.written(tmp_path, answers), "rows")
    by_id = {row["custom_id"]: row["response"]["body"]["choices"][0]["message"] for row in answers}
    joined = [{"messages": [*row["body"]["messages"], by_id[row["custom_id"]]]} for row in requests]
    path = advice.written(tmp_path, joined)
    made = [row for _, row in conversations(Source(path=path), SourceCounts(path))]
    assert [[turn["content"] for turn in row.messages] for row in made] == [["q0", "a"], ["q1", "a"]]
