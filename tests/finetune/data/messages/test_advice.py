"""What a message advises for unknown columns is followed, and reads all that belongs to the question."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.column_templates import BadRow
from hybrid_ft.finetune.data.reading import conversations, judgements, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source

READERS = {"rows": conversations, "pairs": preferences, "judged": judgements}
TOOLS = [{"name": "f"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MEDQA = {"question": "Which?", "options": {"A": "Iron", "B": "Zinc"}, "answer": "Zinc", "answer_idx": "B", "meta": "x"}


def written(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def message(path: str, kind: str) -> str:
    with pytest.raises(InputError) as error:
        list(READERS[kind](Source(path=path), SourceCounts(path)))
    assert "\n" not in str(error.value)
    return str(error.value)


def advised(text: str) -> dict[str, Any]:
    """The keys that a message says to set, as YAML reads them."""
    match = re.search(r"set columns: (.*?)(?: and roles: (\{.*?\}))?(?: \(unused then: .*\))?$", text)
    assert match, text
    keys = {"columns": yaml.safe_load(match[1])}
    return keys | ({"roles": yaml.safe_load(match[2])} if match[2] else {})


def follow(tmp_path: Path, rows: list[dict[str, Any]], kind: str = "rows") -> tuple[list[Any], SourceCounts]:
    path = written(tmp_path, rows)
    counts = SourceCounts(path)
    made = READERS[kind](Source.model_validate({"path": path} | advised(message(path, kind))), counts)
    return [item for _, item in made], counts


FOLLOWED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dialog": ({"dialog": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, ["q", "a"]),
    "speakers": ({"talk": [{"who": "Human", "says": "q"}, {"who": "Bot", "says": "a"}]}, ["q", "a"]),
    "first speaks": ({"chat": [{"speaker": "Ann", "text": "q"}, {"speaker": "Desk", "text": "a"}]}, ["q", "a"]),
    "gemini": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "q"}, {"text": "r"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ]
        },
        ["qr", "a"],
    ),
    "gsm8k": ({"question": "q", "answer": "a"}, ["q", "a"]),
    "response": ({"instruction": "q", "response": "a", "id": 3}, ["q", "a"]),
    "about": ({"query": "q", "context": "c", "answer": "a"}, ["c\n\nq", "a"]),
    "contexts": ({"query": "q", "contexts": ["c", "d"], "answer": 7}, ["c\n\nd\n\nq", "7"]),
    "medqa": (MEDQA, ["Which?\nA. Iron\nB. Zinc", "Zinc"]),
    "numbered": ({"question": "Which?", "choices": ["x", "y"], "answer": 1}, ["Which?\nA. x\nB. y", "y"]),
    "letters": ({"question": "Which?", "A": "x", "B": "y", "answer": "B"}, ["Which?\nA. x\nB. y", "B"]),
    "blanks in a name": ({"question": "q", "choice 1": "x", "answer": "a"}, ["q\nx", "a"]),
    "system": ({"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed_advice_reads_the_rows(name: str, tmp_path: Path) -> None:
    row, texts = FOLLOWED[name]
    (made,), counts = follow(tmp_path, [row])
    assert [turn["content"] for turn in made.messages] == texts
    assert [turn["role"] for turn in made.messages][-2:] == ["user", "assistant"]
    assert not counts.left_out.by_reason


def test_what_would_be_left_out_is_said(tmp_path: Path) -> None:
    text = message(written(tmp_path, [MEDQA]), "rows")
    assert text.endswith(" (unused then: answer_idx, meta)") and "gsm8k" not in text
    assert "columns: {turns: dialog, role: role, content: content}" in message(
        written(tmp_path, [FOLLOWED["dialog"][0]]), "rows"
    )


def test_a_column_that_some_rows_lack_is_written_where_it_is(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "context": "c", "answer": "a"},
        {"query": "r", "answer": "b"},
        {"query": "s", "context": None, "answer": "b"},
    ]
    made, _ = follow(tmp_path, rows)
    assert [row.messages[0]["content"] for row in made] == ["c\n\nq", "r", "s"]


def test_turns_keep_calls_and_reasoning(tmp_path: Path) -> None:
    turns = [
        {"from": "User", "text": "q"},
        {"from": "Agent", "text": "", "tool_calls": [CALL], "reasoning_content": "t"},
        {"from": "tool", "text": "1"},
        {"from": "Agent", "text": "a"},
    ]
    (made,), counts = follow(tmp_path, [{"events": turns, "functions": TOOLS}])
    assert made.tools == TOOLS
    assert made.messages[1]["tool_calls"] == [CALL] and made.messages[1]["reasoning_content"] == "t"
    assert [turn["role"] for turn in made.messages] == ["user", "assistant", "tool", "assistant"]
    assert counts.ignored == []


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q", "answer": "a", "history": [["x", "y"]]},
        {"question": "q", "answer": "a", "image": "cat.png"},
        {"question": "q", "answer": "a", "options": [{"text": "x"}]},
        {"question": "q", "answer": "a", "solution": "b", "choices": ["a"]},
        {"turns": [{"role": "x", "content": "q"}, {"role": "y", "content": "a"}, {"role": "z", "content": "b"}]},
        {"dialog": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "context": "c"},
        {"dialog": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "images": ["cat.png"]},
        {"foo": 1},
    ],
)
def test_no_mapping_is_advised_that_would_leave_out_what_matters(row: dict[str, Any], tmp_path: Path) -> None:
    text = message(written(tmp_path, [row]), "rows")
    assert "known formats: messages | prompt, completion" in text and "set columns" not in text


def test_advice_for_pairs_and_judged_answers(tmp_path: Path) -> None:
    (pair,), _ = follow(tmp_path, [{"query": "q", "context": "c", "preferred": "a", "dispreferred": "b"}], "pairs")
    assert [turn["content"] for turn in (*pair.prompt, pair.chosen, pair.rejected)] == ["c\n\nq", "a", "b"]
    judged, _ = follow(tmp_path, [{"query": "q", "reply": "a", "helpful": n == 1} for n in range(2)], "judged")
    assert not any(isinstance(row, BadRow) for row in judged) and [row.good for row in judged] == [False, True]


def test_pairs_given_for_rows_are_called_pairs(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"chosen": turns, "rejected": [turns[0], turns[1] | {"content": "b"}]}
    text = message(written(tmp_path, [row]), "rows")
    assert (
        "the rows hold pairs, which hybrid-ft dpo trains on; for one answer of each set columns: {turns: chosen" in text
    )
    (made,), _ = follow(tmp_path, [row])
    assert [turn["content"] for turn in made.messages] == ["q", "a"]
    path = written(tmp_path, [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    assert message(path, "rows").endswith("; the rows hold pairs, which hybrid-ft dpo trains on")
    assert len(list(preferences(Source(path=path), SourceCounts(path)))) == 1


def test_no_pair_is_advised_without_its_context(tmp_path: Path) -> None:
    row = {"query": "q", "history": ["x"], "preferred": "a", "dispreferred": "b"}
    assert "set columns" not in message(written(tmp_path, [row]), "pairs")
