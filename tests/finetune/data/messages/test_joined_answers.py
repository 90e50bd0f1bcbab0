"""Answers judged good or bad, joined to pairs by their prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.joined_answers import ALONE
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.reading import preferences
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source

WriteRows = Callable[..., Path]


def read(path: Path, **keys: Any) -> tuple[list[tuple[str, Any]], SourceCounts]:
    counts = SourceCounts("")
    return list(preferences(Source.model_validate({"path": str(path), **keys}), counts)), counts


def texts(made: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(one.chosen["content"], one.rejected["content"]) for _, one in made if isinstance(one, Preference)]


def row(prompt: str, completion: str, label: Any) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


ROWS = [row("p", "a", True), row("q", "x", False), row("p", "b", False), row("q", "y", True), row("p", "c", False)]


def test_answers_to_one_prompt_are_paired_in_their_order(write_rows: WriteRows) -> None:
    path = write_rows(ROWS)
    made, counts = read(path)
    assert texts(made) == [("a", "b"), ("y", "x")]
    assert [place for place, _ in made] == [f"{path}:1", f"{path}:4"]
    assert counts.read == 5 and counts.ignored == []
    assert counts.notes[0] == "good and bad answers to one prompt are its pairs"
    assert counts.notes[1].startswith("1 answers of which their prompt has no more of the other kind")


def test_all_pairs_each_good_one_with_each_bad_one(write_rows: WriteRows) -> None:
    made, counts = read(write_rows([*ROWS, row("p", "d", 1)]), pairs="all")
    assert texts(made) == [("a", "b"), ("a", "c"), ("d", "b"), ("d", "c"), ("y", "x")]
    assert len(counts.notes) == 1


def test_answers_that_have_no_other_are_counted(write_rows: WriteRows) -> None:
    made, _ = read(write_rows([*ROWS, row("r", "z", True), row("p", "e", None), row("p", "f", "maybe")]))
    reasons = [one for _, one in made if not isinstance(one, Preference)]
    assert [type(one) for one in reasons] == [Unusable, BadRow, Unusable]
    assert reasons[-1].kind == ALONE and "hybrid-ft kto" in ALONE


def test_the_system_text_and_tools_belong_to_the_prompt(write_rows: WriteRows) -> None:
    rows = [row("p", "a", True) | {"system": "s"}, row("p", "b", False), row("p", "c", False) | {"system": "s"}]
    made, _ = read(write_rows(rows))
    assert texts(made) == [("a", "c")]


@pytest.mark.parametrize(
    ("rows", "keys"),
    [
        ([{"q": "p", "a": text, "stars": stars} for text, stars in (("a", 5), ("b", 1))], {"columns": {"prompt": "q", "completion": "a", "label": "stars"}, "labels": {"5": True, "1": False}}),
        ([{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": text}], "thumbs_up": up} for text, up in (("a", "up"), ("b", "down"))], {}),
    ],
)  # fmt: skip
def test_other_columns_and_labels(rows: list[dict[str, Any]], keys: dict[str, Any], write_rows: WriteRows) -> None:
    made, _ = read(write_rows(rows), **keys)
    assert texts(made) == [("a", "b")]


def test_pairs_beside_a_label_stay_pairs(write_rows: WriteRows) -> None:
    made, counts = read(write_rows([{"prompt": "p", "chosen": "a", "rejected": "b", "label": 1}] * 2))
    assert texts(made) == [("a", "b")] * 2 and counts.ignored == ["label"]


def test_the_same_answer_judged_both_ways_is_no_pair(write_rows: WriteRows) -> None:
    made, _ = read(write_rows([row("p", "a", True), row("p", "a", False)]))
    assert [one.kind for _, one in made] == ["identical answers"]
