"""A pair from two whole conversations: what they share, and the two answers."""

import pickle
from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.preference import Unusable, margin_from, preference_from
from hybrid_ft.finetune.data.sources.rows import BadRow


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


def test_the_prompt_is_all_but_the_last_answers() -> None:
    pair = preference_from(turns("a", "b", "c", "good"), turns("a", "b", "c", "bad"), None, set())
    assert pair.prompt == turns("a", "b", "c")
    assert (pair.chosen["content"], pair.rejected["content"]) == ("good", "bad")
    assert [side.messages for side in pair.sides()] == [turns("a", "b", "c", "good"), turns("a", "b", "c", "bad")]


def test_the_opposite_of_a_pair_is_the_whole_of_the_other() -> None:
    pair, other = (
        preference_from(turns("q", first), turns("q", second), None, set())
        for first, second in (("x", "y"), ("y", "x"))
    )
    assert pair.opposite() == other.whole() != pair.whole()
    assert pair.asked() == other.asked() == "q"


@pytest.mark.parametrize(
    ("chosen", "rejected", "kind", "said"),
    [
        (turns("q", "a"), turns("q", "a"), "identical answers", "are the same"),
        (turns("q", "a"), turns("p", "b"), "no shared prompt", "differ from their first turn on"),
        (turns("q", "a", "r", "b"), turns("q", "c", "r", "b"), "no shared prompt", "part at turn 2, before the last"),
        (turns("q", "a"), turns("q", "b", "r", "c"), "no shared prompt", "part at turn 2"),
        (turns("q", "a")[1:], turns("q", "b")[1:], "no shared prompt", "nothing says what they answer"),
        (turns("q", "a"), turns("q", " "), "empty answer", "rejected.1.: the assistant's turn is empty"),
        (turns("q", "a", "r"), turns("q", "b"), "ends on a user turn", "chosen: the row ends on a user turn"),
    ],
)
def test_a_pair_that_teaches_nothing_says_which_side_and_why(chosen: Any, rejected: Any, kind: str, said: str) -> None:
    with pytest.raises(Unusable, match=said) as refused:
        preference_from(chosen, rejected, None, set())
    assert refused.value.kind == kind


def test_what_is_said_of_a_pair_survives_the_way_between_processes() -> None:
    said = Unusable("kind", "text")
    said.line, said.which, said.file = 7, "row 2", "a.jsonl"
    again = pickle.loads(pickle.dumps(said))
    assert (again.kind, str(again), again.line, again.which, again.file) == ("kind", "text", 7, "row 2", "a.jsonl")


def test_a_margin_is_a_number() -> None:
    assert [margin_from(value) for value in (None, "", "1.5", -2, 1e6)] == [0.0, 0.0, 1.5, -2.0, 1e6]
    for wrong in (True, "much", [1], float("nan"), 1e7, 10**400):
        with pytest.raises(BadRow, match="margin is .*; must be a number"):
            margin_from(wrong)
