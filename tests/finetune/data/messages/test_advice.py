"""What a message advises for unknown columns is followed, and reads all that belongs to the question."""

from pathlib import Path
from typing import Any

import pytest
from advice_helpers import follow, message, written

from hybrid_ft.finetune.data.messages.column_templates import BadRow
from hybrid_ft.finetune.data.reading import conversations, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source

TOOLS = [{"name": "f"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
MEDQA = {"question": "Which?", "options": {"A": "Iron", "B": "Zinc"}, "answer": "Zinc", "answer_idx": "B", "meta": "x"}


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
    "gemini with a system text": (
        {"systemInstruction": {"role": "system", "parts": [{"text": "s"}]}}
        | {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}]},
        ["s", "q", "a"],
    ),
    "gsm8k": ({"question": "q", "answer": "a"}, ["q", "a"]),
    "input": ({"input": "q", "output": "a"}, ["q", "a"]),
    "inputs": ({"inputs": "q", "targets": "a", "task": "t"}, ["q", "a"]),
    "an article": ({"article": "q", "highlights": "a"}, ["q", "a"]),
    "turns by other keys": (
        {"conversation": [{"speaker": "User", "text": "q"}, {"speaker": "Bot", "text": "a"}]},
        ["q", "a"],
    ),
    "a system message": ({"system_message": "s", "question": "q", "answer": "a"}, ["s", "q", "a"]),
    "response": ({"instruction": "q", "response": "a", "id": 3}, ["q", "a"]),
    "about": ({"query": "q", "context": "c", "answer": "a"}, ["c\n\nq", "a"]),
    "contexts": ({"query": "q", "contexts": ["c", "d"], "answer": 7}, ["c\n\nd\n\nq", "7"]),
    "medqa": (MEDQA, ["Which?\nA. Iron\nB. Zinc", "Zinc"]),
    "numbered": ({"question": "Which?", "choices": ["x", "y"], "answer": 1}, ["Which?\nA. x\nB. y", "y"]),
    "letters": ({"question": "Which?", "A": "x", "B": "y", "answer": "B"}, ["Which?\nA. x\nB. y", "B"]),
    "blanks in a name": ({"question": "q", "choice 1": "x", "answer": "a"}, ["q\nx", "a"]),
    "system": ({"system_prompt": "s", "question": "q", "response": "a"}, ["s", "q", "a"]),
    "yes or no": ({"question": "q", "passage": "p", "answer": False}, ["p\n\nq", "no"]),
    "squad": (
        {"id": "1", "context": "c", "question": "q", "answers": {"text": ["a", "b"], "answer_start": [1, 2]}},
        ["c\n\nq", "a"],
    ),
    "answers": ({"question": "q", "answers": ["a", "b"]}, ["q", "a"]),
    "answers that are objects": ({"question": "q", "answers": [{"text": "a", "answer_start": 1}]}, ["q", "a"]),
    "triviaqa": ({"question": "q", "answer": {"value": "a", "aliases": ["b"]}}, ["q", "a"]),
    "drop": ({"passage": "p", "question": "q", "answers_spans": {"spans": ["a"], "types": ["span"]}}, ["p\n\nq", "a"]),
    "arc": (
        {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        ["Which?\n1. x\n2. y", "2"],
    ),
    "arc as published": (
        {"question": {"stem": "Which?", "choices": [{"text": "x", "label": "A"}, {"text": "y", "label": "B"}]}}
        | {"answerKey": "B"},
        ["Which?\nA. x\nB. y", "B"],
    ),
    "options without letters": (
        {"question": "Which?", "options": [{"text": "x"}, {"text": "y"}], "answer": "y"},
        ["Which?\nA. x\nB. y", "y"],
    ),
    "passages": (
        {
            "question": "q",
            "context": [{"title": "t", "text": "c", "score": 1}, {"title": "u", "text": "d"}],
            "answer": "a",
        },
        ["t\nc\n\nu\nd\n\nq", "a"],
    ),
    "documents": ({"query": "q", "documents": [{"id": "7", "content": "c"}], "answer": "a"}, ["c\n\nq", "a"]),
    "hotpot": (
        {"question": "q", "answer": "a", "context": {"title": ["t", "u"], "sentences": [["c", "d"], ["e"]]}},
        ["t\nc d\n\nu\ne\n\nq", "a"],
    ),
    "an instruction's text": ({"instruction": "q", "text": "c", "target": "a"}, ["c\n\nq", "a"]),
    "a whole row as text": ({"instruction": "q", "response": "a", "text": "Below: q a"}, ["q", "a"]),
    "a dialogue": ({"dialogue": "q", "summary": "a"}, ["q", "a"]),
    "keys in capitals": (
        {"messages": [{"Role": "User", "Content": "q"}, {"Role": "Assistant", "Content": "a"}]},
        ["q", "a"],
    ),
    "texts in turn": ({"dialog": ["q", "a", "r", "b"]}, ["q", "a", "r", "b"]),
    "keys of every object": ({"question": "q", "answers": {"value": ["a"], "values": 1}}, ["q", "a"]),
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
        FOLLOWED["gemini"][0] | {"systemInstruction": {"parts": [{"text": "s"}, {"text": "t"}]}},
        {"question": "q", "answer": "a", "options": [{"x": "x"}]},
        {"question": "q", "answer": "a", "context": [{"text": "c", "remark": "r"}]},
        {"question": "q", "answers": ["a", "b"], "correct": 1},
        {"question": "q", "answers": ["a", "b"], "choices": {"text": ["a"], "label": ["A", "B"]}},
        {"dialogue": ["q", "a"], "speakers": ["Ann", "Bob"]},
        {"question_id": 81, "category": "writing", "turns": ["q", "r"], "reference": ["a", "b"]},
        {"text": "A film.", "label": "1"},
        {"sent1": "q", "sent2": "r", "ending0": "a", "ending1": "b", "ending2": "c", "ending3": "d", "label": 0},
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


def test_a_question_that_its_passage_does_not_answer(tmp_path: Path) -> None:
    rows = [
        {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
        {"context": "c", "question": "r", "answers": {"text": [], "answer_start": []}},
    ]
    made, _ = follow(tmp_path, rows)
    assert [row.messages[-1]["content"] for row in made] == ["a", "unanswerable"]


RATED = [
    {"prompt": "q", "response": text, "helpfulness": score, "verbosity": 1}
    for text, score in (("a", 4), ("b", 1), ("c", 3), ("d", 2))
]


def test_rated_answers_are_pairs_or_judged_or_the_better_rows(tmp_path: Path) -> None:
    pairs, _ = follow(tmp_path, RATED, "pairs")
    assert [(pair.chosen["content"], pair.rejected["content"]) for pair in pairs] == [("a", "b"), ("c", "d")]
    judged, _ = follow(tmp_path, RATED, "judged")
    assert [row.good for row in judged] == [True, False, True, False]
    made, counts = follow(tmp_path, RATED)
    assert [row.messages[-1]["content"] for row in made] == ["a", "c"] and counts.passed_over == 2


SCORED = [{"prompt": "q", "completion": text, "score": score} for text, score in (("a", 0.8), ("b", 0.25), ("c", 1))]


def test_scores_of_any_number_tell_good_answers_from_bad(tmp_path: Path) -> None:
    judged, _ = follow(tmp_path, SCORED, "judged")
    assert [row.good for row in judged] == [True, False, True]
    pairs, _ = follow(tmp_path, SCORED[:2], "pairs")
    assert [(pair.chosen["content"], pair.rejected["content"]) for pair in pairs] == [("a", "b")]
    stars = [row | {"score": row["score"] * 5} for row in SCORED]
    assert [row.good for row in follow(tmp_path, stars, "judged")[0]] == [True, False, True]


def test_a_conversation_beside_a_pair_is_called_one(tmp_path: Path) -> None:
    """It ends on the question that both answers are to: nothing in it is trained."""
    row: dict[str, Any] = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}
    for turns in (row["conversations"], [*row["conversations"], {"from": "gpt", "value": "a"}, *row["conversations"]]):
        path = written(tmp_path, [row | {"conversations": turns, "rejected": {"from": "gpt", "value": "b"}}])
        ((_, bad),) = conversations(Source(path=path), SourceCounts(path))
        assert isinstance(bad, BadRow) and str(bad).endswith("; the rows hold pairs, which hybrid-ft dpo trains on")
    assert len(list(preferences(Source(path=path), SourceCounts(path)))) == 1
    ((_, bad),) = conversations(Source(path=written(tmp_path, [row])), SourceCounts(path))
    assert isinstance(bad, BadRow) and "pairs" not in str(bad)
