"""Lists of answers with scores or ranks, and rejected answers beside a conversation, as pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.reading import conversations, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source

WriteRows = Callable[..., Path]
Q = {"role": "user", "content": "q"}
SYSTEM = {"role": "system", "content": "s"}
TEXTS = ["c", "a", "d", "b"]
SCORES = [2, 4, 1, 3]


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(path: Path, **keys: Any) -> tuple[list[Any], SourceCounts]:
    counts = SourceCounts("")
    rows = [made for _, made in preferences(Source.model_validate({"path": str(path), **keys}), counts)]
    return rows, counts


def texts(pair: Preference) -> tuple[str, str]:
    return pair.chosen["content"], pair.rejected["content"]


RECOGNISED = [
    {"prompt": "q", "responses": TEXTS, "scores": SCORES},
    {"prompt": "q", "responses": TEXTS, "ratings": ["2", "4.0", "1", "3"]},
    {"instruction": "q", "completions": [{"response": text, "overall_score": score} for text, score in zip(TEXTS, SCORES, strict=True)]},
    {"prompt": "q", "completions": TEXTS, "rewards": [0.2, 0.4, -1.5, 0.3]},
    {"query": "q", "candidates": TEXTS, "ranks": [2, 0, 3, 1]},
    {"context": [Q], "completions": [{"rank": 4 - score, "completion": [answer(text)]} for text, score in zip(TEXTS, SCORES, strict=True)]},
    {"messages": [Q], "responses": [answer(text) for text in TEXTS], "scores": SCORES},
    {"messages": [Q], "responses": [answer(text) | {"score": score} for text, score in zip(TEXTS, SCORES, strict=True)]},
    {"prompt": "q", "responses": json.dumps(TEXTS), "scores": json.dumps(SCORES)},
]  # fmt: skip


def test_scores_that_are_fewer_than_answers(write_rows: WriteRows) -> None:
    good = {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]}
    for first, second in ((good, good | {"responses": ["a", "b", "c"]}), (good | {"scores": [1]}, good)):
        rows, _ = read(write_rows([first, second]))
        (bad,) = [row for row in rows if isinstance(row, BadRow)]
        assert str(bad).startswith("scores: has ") and "answers; must have as many" in str(bad)


@pytest.mark.parametrize("row", RECOGNISED, ids=range(len(RECOGNISED)))
def test_a_list_is_its_best_answer_against_its_worst(row: dict[str, Any], write_rows: WriteRows) -> None:
    rows, counts = read(write_rows([row, row]))
    assert [(pair.prompt, texts(pair), pair.unused) for pair in rows] == [([Q], ("a", "d"), set())] * 2
    assert counts.ignored == [] and counts.read == 2
    (note,) = counts.notes
    assert "the best answer against the worst, by" in note


@pytest.mark.parametrize("row", RECOGNISED, ids=range(len(RECOGNISED)))
def test_all_gives_every_two_that_differ(row: dict[str, Any], write_rows: WriteRows) -> None:
    rows, counts = read(write_rows([row]), pairs="all")
    assert sorted(map(texts, rows)) == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert "every two answers that differ" in counts.notes[0]


def test_equal_scores_make_no_pair(write_rows: WriteRows) -> None:
    row = {"prompt": "q", "responses": TEXTS, "scores": [1, 1, 0, 0]}
    assert sorted(map(texts, read(write_rows([row]), pairs="all")[0])) == [
        ("a", "b"),
        ("a", "d"),
        ("c", "b"),
        ("c", "d"),
    ]
    for scores, kind in [([1, 1, 1, 1], "no preference"), ([1, None, "N/A", None], "fewer than two answers")]:
        ((one, other), _) = read(write_rows([row, row | {"scores": scores}]))
        assert texts(one) == ("c", "b")
        assert isinstance(other, Unusable) and other.kind == kind


def test_system_text_tools_and_the_rest_stay(write_rows: WriteRows) -> None:
    row = {"system": "s", "prompt": "q", "responses": ["a", "b"], "scores": [1, 0], "id": 7}
    ((pair,), counts) = read(write_rows([row]))
    assert pair.prompt == [SYSTEM, Q] and counts.ignored == ["id"]


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"ask": "q", "says": TEXTS, "stars": SCORES}, {"prompt": "ask", "answers": "says", "scores": "stars"}),
        ({"ask": "q", "all": {"says": TEXTS, "place": [3, 1, 4, 2]}}, {"prompt": "ask", "answers": "all.says", "ranks": "all.place"}),
        (
            {"ask": "q", "says": [{"it": {"text": text}, "got": {"stars": score}} for text, score in zip(TEXTS, SCORES, strict=True)]},
            {"prompt": "ask", "answers": "says", "answer": "it.text", "scores": "got.stars"},
        ),
        ({"chosen": "x", "ask": "q", "says": TEXTS, "stars": SCORES}, {"prompt": "ask", "answers": "says", "scores": "stars"}),
    ],
)  # fmt: skip
def test_lists_are_mapped_by_columns(
    row: dict[str, Any], columns: dict[str, str], write_rows: WriteRows, tmp_path: Path
) -> None:
    path = write_rows([row])
    ((pair,), _) = read(path, columns=columns)
    assert (pair.prompt, *texts(pair)) == ([Q], "a", "d")
    (tmp_path / "mine.yaml").write_text(json.dumps({"columns": columns}))
    ((pair,), _) = read(path, columns=str(tmp_path / "mine.yaml"))
    assert texts(pair) == ("a", "d")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"scores": [1, 2]}, "scores: has 2 values for 4 answers; must have as many"),
        ({"scores": [1, 2, "high", 3]}, "scores[2]: got 'high'; must be a number, or null"),
        ({"scores": [1, 2, True, [3]]}, "scores[3]: got a list of 1; must be a number"),
        ({"scores": None}, "scores is missing; must be a list beside responses"),
        ({"responses": "text"}, "responses: got 'text'; must be a list of answers"),
        ({"responses": ["a", None, "b", "c"]}, "responses[1] is null; give its text"),
        ({"responses": ["a", 7, "b", "c"]}, "chosen: got 7"),
    ],
)
def test_a_list_that_is_none_is_a_bad_row(changed: dict[str, Any], says: str, write_rows: WriteRows) -> None:
    row = {"prompt": "q", "responses": TEXTS, "scores": SCORES}
    ((_, bad, _), _) = read(write_rows([row, row | changed, row]))
    assert isinstance(bad, BadRow) and says in str(bad)
    places = [place for place, _ in preferences(Source(path=str(write_rows([row, row | changed]))), SourceCounts(""))]
    assert [place.rsplit(":", 1)[1] for place in places] == ["1", "2"]


TALK = [Q, answer("x"), {"role": "user", "content": "r"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*TALK, answer("a")], "rejected_response": "b"},
        {"messages": [*TALK, answer("a")], "rejected_messages": [*TALK, answer("b")]},
        {"messages": [*TALK, answer("a")], "rejected_messages": [answer("b")]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "x"}, {"from": "human", "value": "r"}, {"from": "gpt", "value": "a"}], "rejected_response": "b"},
        {"query": "r", "history": [["q", "x"]], "response": "a", "rejected_response": "b"},
    ],
)  # fmt: skip
def test_a_rejected_answer_beside_the_conversation(row: dict[str, Any], write_rows: WriteRows) -> None:
    ((pair,), counts) = read(write_rows([row]))
    assert (pair.prompt, *texts(pair)) == (TALK, "a", "b")
    assert counts.ignored == [] and "the rejected one" in counts.notes[0]


def test_a_conversation_and_an_answer_alone_may_be_mapped(write_rows: WriteRows) -> None:
    path = write_rows([{"dialog": [*TALK, answer("a")], "worse": "b"}])
    ((pair,), _) = read(path, columns={"chosen": "dialog", "rejected": "worse"})
    assert (pair.prompt, *texts(pair)) == (TALK, "a", "b")


def test_roles_of_pairs_are_mapped(write_rows: WriteRows) -> None:
    turns = [[{"role": "Human", "content": "q"}, {"role": "Bot", "content": text}] for text in ("a", "b")]
    path = write_rows([{"chosen": turns[0], "rejected": turns[1]}, {"chosen": turns[0], "rejected": turns[1]}])
    rows, _ = read(path, roles={"Human": "user", "Bot": "assistant"})
    assert [(pair.prompt, *texts(pair)) for pair in rows] == [([Q], "a", "b")] * 2
    lists = write_rows([{"prompt": turns[0][:1], "responses": [turns[0][1], turns[1][1]], "scores": [1, 0]}])
    ((pair,), _) = read(lists, roles={"Human": "user", "Bot": "assistant"})
    assert (pair.prompt, *texts(pair)) == ([Q], "a", "b")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"prompt": "p", "answers": "a"}, "must name answers and either scores or ranks"),
        ({"prompt": "p", "answers": "a", "scores": "s", "ranks": "r"}, "must name answers and either scores or ranks"),
        ({"prompt": "p", "answers": "a", "scores": "s", "chosen": "c"}, "and no other answers"),
        ({"prompt": "p", "answers": "a", "scores": "s", "completion": "c"}, "must map rows or pairs, not both"),
        ({"prompt": "p", "answers": "{{ a }}", "scores": "s"}, "answers must be the name of a column or key"),
        ({"prompt": "p", "completion": "c", "scores": "s"}, "scores needs answers"),
    ],
)
def test_mappings_that_contradict_themselves(columns: dict[str, str], says: str) -> None:
    source = Source.model_validate({"path": "x", "columns": columns})
    assert source.columns is not None and says in str(source.columns.contradiction())


def test_pairs_all_needs_lists(write_rows: WriteRows) -> None:
    with pytest.raises(InputError, match="pairs: got all; the source holds no lists of answers"):
        read(write_rows([{"prompt": "q", "chosen": "a", "rejected": "b"}]), pairs="all")
    rows = write_rows([{"prompt": "q", "completion": "a"}])
    with pytest.raises(InputError, match="pairs: got all; only pairs have it, leave it out"):
        list(conversations(Source(path=str(rows), pairs="all"), SourceCounts("")))
    with pytest.raises(InputError, match=r"columns: no column says \(found ask\)"):
        read(write_rows([{"ask": "q"}]), columns={"prompt": "ask", "answers": "says", "scores": "stars"})


def test_chosen_and_rejected_come_before_a_list(write_rows: WriteRows) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "responses": TEXTS, "scores": SCORES}
    ((pair,), counts) = read(write_rows([row]))
    assert texts(pair) == ("a", "b") and counts.ignored == ["responses", "scores"]


def test_columns_that_hold_nothing_are_no_pair(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    nothing = dict.fromkeys(("prompt", "chosen", "rejected", "messages", "rejected_messages"))
    for name in ("prompt", "query"):
        path.write_text(json.dumps(nothing | {name: "q", "responses": ["a", "b"], "scores": [1, 2]}))
        ((pair,), counts) = read(path)
        assert texts(pair) == ("b", "a") and pair.prompt == [Q] and counts.ignored == []


@pytest.mark.parametrize(
    "row",
    [
        {"responses": [{"from": "gpt", "value": "a", "score": 1}, {"from": "gpt", "value": "b", "score": 2}]},
        {"responses": [{"text": text, "score": at, "role": None, "content": None} for at, text in enumerate("ab")]},
        {"responses": [answer(text) | {"score": at, "text": None} for at, text in enumerate("ab")]},
        {"responses": "['a', 'b']", "scores": "[1, 2.5]"},
        {"responses": "['a', \"b\"]", "ranks": "[2, 1]"},
    ],
)
def test_lists_of_turns_padded_ones_and_what_python_printed(tmp_path: Path, row: dict[str, Any]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "q"} | row))
    ((pair,), _) = read(path)
    assert (pair.chosen["content"], pair.rejected["content"]) == ("b", "a")


def test_what_is_said_of_a_list_and_of_a_rejected_answer_leads_on(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    row = {"prompt": "q", "responses": ["a", "b"], "ranking": [2, 1]}
    path.write_text(json.dumps(row))
    with pytest.raises(InputError, match=r"of a list of answers \{prompt: ..., answers: ..., scores: ...\}, or ranks"):
        read(path)
    ((pair,), _) = read(path, columns={"prompt": "prompt", "answers": "responses", "ranks": "ranking"})
    assert texts(pair) == ("b", "a")
    rows = [{"messages": [Q, answer("a")], "rejected_response": other} for other in ("b", None)]
    path.write_text("\n".join(map(json.dumps, rows)))
    ((_, bad), _) = read(path)
    assert str(bad) == "rejected_response is null or missing; a pair needs both answers"
