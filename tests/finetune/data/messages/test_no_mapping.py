"""Rows that no mapping reads are named, and the way on that is said is followed."""

from pathlib import Path
from typing import Any

import pandas
import pytest
from advice_helpers import READERS, follow, message, written

from hybrid_ft.finetune.data.reading import conversations, preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"role": "user", "content": "q"},
            "rows are turns, each alone; a row is a whole conversation, {messages: [{role: ",
        ),
        ({"from": "human", "value": "q"}, "rows are turns, each alone; "),
        (
            {"conversations": [{"user": "q", "assistant": "a"}]},
            "holds objects of user, assistant, which do not say who speaks",
        ),
    ],
)
def test_turns_that_do_not_say_who_speaks(row: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in message(written(tmp_path, [row]), "rows")


SQUAD: dict[str, Any] = {
    "title": "T",
    "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}],
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"version": "1.1", "data": [SQUAD]}, "several questions, in data[].paragraphs[].qas; write each question as"),
        (SQUAD, "several questions, in paragraphs[].qas; write each question as"),
        ({"story": "s", "questions": ["q", "r"], "answers": {"input_text": ["a", "b"]}}, "questions, in questions; "),
        (
            {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"},
            "single messages of a tree, by parent_id",
        ),
        ({"mapping": {"a": {"message": None, "parent": None, "children": ["b"]}}}, "trees of messages, by children"),
        ({"prompt": {"text": "q", "replies": [{"text": "a", "replies": []}]}}, "trees of messages, by replies"),
        ({"input_ids": [1, 2], "attention_mask": [1, 1], "labels": [-100, 2]}, "input_ids holds token ids"),
    ],
)
def test_rows_that_no_mapping_reads_are_named(row: dict[str, Any], says: str, kind: str, tmp_path: Path) -> None:
    assert says in message(written(tmp_path, [row]), kind)


def test_the_paths_of_a_tree_are_read(tmp_path: Path) -> None:
    """As the message about trees says: each path a row, and two replies to one message a pair."""
    tree = [("1", None, "q"), ("2", "1", "a"), ("3", "1", "b"), ("4", "2", "r"), ("5", "4", "c")]
    by_name = {name: (parent, text) for name, parent, text in tree}

    def turns(name: str | None) -> list[dict[str, str]]:
        if name is None:
            return []
        before = turns(by_name[name][0])
        return [*before, {"role": ("user", "assistant")[len(before) % 2], "content": by_name[name][1]}]

    path = written(tmp_path, [{"messages": turns("5")}, {"messages": turns("3")}])
    rows = [row for _, row in conversations(Source(path=path), SourceCounts(path))]
    assert [[turn["content"] for turn in row.messages] for row in rows] == [["q", "a", "r", "c"], ["q", "b"]]
    path = written(tmp_path, [{"prompt": turns("1"), "chosen": "a", "rejected": "b"}])
    ((_, pair),) = preferences(Source(path=path), SourceCounts(path))
    assert (pair.prompt, pair.chosen["content"]) == (turns("1"), "a")


def test_the_questions_of_an_article_are_read(tmp_path: Path) -> None:
    """As the message about several questions says: each a row with its passage, for which a mapping is advised."""
    rows = [
        {"context": passage["context"], "question": qa["question"], "answer": qa["answers"][0]["text"]}
        for passage in SQUAD["paragraphs"]
        for qa in passage["qas"]
    ]
    (made,), _ = follow(tmp_path, rows)
    assert [turn["content"] for turn in made.messages] == ["c\n\nq", "a"]


@pytest.mark.parametrize("orient", ["columns", "split"])
def test_a_table_by_columns_is_written_by_rows(orient: Any, tmp_path: Path) -> None:
    """As the message says: pandas then writes rows that are read."""
    frame, path = pandas.DataFrame([{"prompt": "q", "completion": "a"}]), tmp_path / "rows.json"
    frame.to_json(path, orient=orient)
    assert message(str(path), "rows").endswith("to_json(..., orient='records', lines=True) of pandas")
    frame.to_json(path.with_suffix(".jsonl"), orient="records", lines=True)
    ((_, made),) = conversations(Source(path=str(path.with_suffix(".jsonl"))), SourceCounts(""))
    assert [turn["content"] for turn in made.messages] == ["q", "a"]


def test_turns_that_are_no_pair_are_not_said_to_lack_a_speaker(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for kind in ("pairs", "judged"):
        text = message(written(tmp_path, [{"messages": turns}]), kind)
        assert "known formats: " in text and "who speaks" not in text
