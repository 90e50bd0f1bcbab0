"""A conversation's checks, and what makes two of them equal."""

from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.conversation import Conversation, checked, finished
from hybrid_ft.finetune.data.messages.noticed import WEIGHTED
from hybrid_ft.finetune.data.sources.rows import BadRow


def turn(role: str, content: str = "x", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {"type": "function", "function": {"name": "search", "arguments": {"q": "x"}}}


@pytest.mark.parametrize(
    ("messages", "weights", "kind", "said"),
    [
        ([], {}, "no turns", "messages is empty"),
        ([turn("user")], {}, "no assistant turn", "no assistant turn"),
        ([turn("user"), turn("assistant")], {1: [(None, 0.0)]}, "nothing to learn", "says not to train it"),
        ([turn("user"), turn("assistant", " \n")], {}, "empty answer", "messages[1]: the assistant's turn is empty"),
        ([turn("user", ""), turn("assistant")], {}, "empty prompt", "messages[0]: the user's turn is empty"),
        ([turn("user"), turn("assistant"), turn("tool")], {}, "ends on a tool turn", "ends on a tool turn"),
    ],
)
def test_a_conversation_without_an_answer_to_learn_is_refused(
    messages: Any, weights: Any, kind: str, said: str
) -> None:
    with pytest.raises(BadRow) as refused:
        checked(Conversation(messages, weights=weights), "messages")
    assert refused.value.kind == kind and said in str(refused.value)


def test_an_answer_that_is_a_call_may_be_empty_and_one_turn_of_two_untrained() -> None:
    row = Conversation([turn("user"), turn("assistant", "", tool_calls=[CALL]), turn("tool"), turn("assistant")])
    row.weights = {1: [(0, 0.0), (None, 0.0)]}
    assert checked(row, "messages") is row
    assert row.untrained == {1}


def test_turns_are_named_by_the_columns_they_come_from() -> None:
    with pytest.raises(BadRow, match="^answer: the assistant's turn is empty"):
        checked(Conversation([turn("user"), turn("assistant", "")]), "x", ["question", "answer"])


def test_rows_that_ask_the_same_first_are_equal_there() -> None:
    one = Conversation([turn("system", "s"), turn("user", "a  b\n"), turn("assistant"), turn("user", "more")])
    other = Conversation([turn("user", "a b"), turn("assistant", "y")])
    assert one.asked() == other.asked() == "a b"
    assert Conversation([turn("user", "a"), turn("user", "b"), turn("assistant")]).asked() == "a\nb"


def test_rows_are_the_same_only_where_they_are_trained_alike() -> None:
    rows = [Conversation([turn("user"), turn("assistant")]) for _ in range(4)]
    rows[1].weights = {1: [(None, 0.5)]}
    rows[2].template_arguments = {"thinking": True}
    assert len({row.whole() for row in rows}) == 3 and rows[0].whole() == rows[3].whole()
    assert rows[2].fields() == {"chat_template_kwargs.thinking"}


def test_weighted_turns_are_counted_and_untrained_ones_are_not() -> None:
    row = Conversation([turn("user"), turn("assistant"), turn("user"), turn("assistant")])
    row.weights = {1: [(None, 0.0)], 3: [(None, 0.5)]}
    assert finished(row, "messages").noticed == {WEIGHTED: 1}
