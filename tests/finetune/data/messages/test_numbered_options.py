"""Options in columns of their own: the right one is found where the rows tell how they are
counted, and never guessed."""

from pathlib import Path
from typing import Any

import advice_helpers as advice
import pytest

from hybrid_ft.finetune.data.sources.rows import BadRow

ABOUT = {"sentence": "The _ is wet.", "question": "q"}


def rows_of(labels: list[Any], key: str = "label", names: str = "answerA answerB answerC", **more: Any) -> list[dict]:
    options = {name: f"{name} text" for name in names.split()}
    return [{"question": "q", **options, key: label, **more} for label in labels]


@pytest.mark.parametrize(
    ("rows", "right"),
    [
        (rows_of(["1", "3", "2"]), ["answerA", "answerC", "answerB"]),  # Social IQa
        (rows_of([0, 1], names="choice1 choice2"), ["choice1", "choice2"]),  # COPA
        (rows_of([3, 0, None], key="correct", names="option_a option_b option_c option_d"), ["option_d", "option_a"]),
        (rows_of(["2", "1"], key="answer", names="sol1 sol2"), ["sol2", "sol1"]),
    ],
    ids=["from 1", "from 0", "letters", "as texts"],
)
def test_the_right_option_is_the_answer(rows: list[dict], right: list[str], tmp_path: Path) -> None:
    made, counts = advice.follow(tmp_path, rows)
    found = [row for row in made if not isinstance(row, BadRow)]
    assert [row.messages[-1]["content"] for row in found] == [f"{name} text" for name in right]
    for name in rows[0]:
        if name.startswith(("answer", "choice", "option", "sol")) and name != "answer":
            assert f"{name} text" in found[0].messages[0]["content"]
    assert not counts.left_out.by_reason


@pytest.mark.parametrize("labels", [[1, 2], ["2", "1"], [1, 9], [True, False], ["x", "y"]])
def test_none_is_guessed(labels: list[Any], tmp_path: Path) -> None:
    """Three options of which 1 and 2 are right are counted from 0 or from 1."""
    for key in ("label", "answer"):
        text = advice.message(advice.written(tmp_path, rows_of(labels, key)), "rows")
        if key == "answer" and not isinstance(labels[0], int) and not labels[0].isdecimal():
            assert "completion: answer}" in text  # a text is one
        elif not isinstance(labels[0], bool):
            assert "set columns" not in text


@pytest.mark.parametrize(
    ("rows", "asked", "answers"),
    [
        (
            [
                {"activity_label": "Cooking", "ctx": "A man stirs. He", "endings": ["w", "x", "y", "z"], "label": "2"},
                {"activity_label": "Cooking", "ctx": "A man stirs. He", "endings": ["w", "x", "y", "z"], "label": ""},
            ],
            "Which ending goes on best?\n\nCooking: A man stirs. He\n\nA. w\nB. x\nC. y\nD. z",
            "y\n\nThe answer is C.",
        ),
        (
            [{"goal": "Boil an egg", "sol1": "x", "sol2": "y", "label": label} for label in (1, -1)],
            "Boil an egg\n\nA. x\nB. y",
            "y\n\nThe answer is B.",
        ),
        (
            [{"sentence": "Ann fed _.", "option1": "x", "option2": "y", "answer": answer} for answer in ("1", "")],
            "Which of the two belongs at the _?\n\nAnn fed _.\n\nA. x\nB. y",
            "x\n\nThe answer is A.",
        ),
    ],
    ids=["hellaswag", "piqa", "winogrande"],
)
def test_shipped_mappings_of_choices(rows: list[dict], asked: str, answers: str, tmp_path: Path) -> None:
    """A row of their test splits has no label, and is bad."""
    (made, unlabelled), _ = advice.follow(tmp_path, rows)
    assert [turn["content"].rstrip() for turn in made.messages] == [asked, answers]
    assert isinstance(unlabelled, BadRow)
