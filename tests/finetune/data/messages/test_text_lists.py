"""Lists of messages that a table holds as text."""

import json
from typing import Any

import numpy as np
import pytest

from hybrid_ft.finetune.data.messages.columns import pair_format, row_format
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.noticed import NO_LISTS, TEXT_LISTS
from hybrid_ft.finetune.data.messages.preference import Preference
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.data_section import Source

ASKED = [{"role": "user", "content": 'Say "it\'s\n[{]}" twice'}]
ANSWER = [{"role": "assistant", "content": "Grüß dich 😀"}]
WORSE = [{"role": "assistant", "content": "No."}]
SHAREGPT = [{"from": "human", "value": ASKED[0]["content"]}, {"from": "gpt", "value": ANSWER[0]["content"]}]
WRITERS = [
    json.dumps,
    lambda turns: json.dumps(turns, ensure_ascii=False, indent=1),
    repr,
    lambda turns: str(np.array(turns, dtype=object)),
    lambda turns: repr(np.array(turns, dtype=object)),
]


def read(values: dict[str, Any], **source: Any) -> Conversation:
    form = row_format(Source(path="x", **source), [Row(1, values)])
    assert form is not None
    return form.convert(values)


def read_pair(values: dict[str, Any], **source: Any) -> Preference:
    form = pair_format(Source(path="x", **source), [Row(1, values)])
    assert form is not None
    return form.convert(values)


@pytest.mark.parametrize("write", WRITERS, ids=["json", "indented", "repr", "numpy", "numpy repr"])
def test_text_that_is_a_list_of_messages_is_those_turns(write: Any) -> None:
    rows = [
        {"messages": write(ASKED + ANSWER)},
        {"conversations": write(ASKED + ANSWER)},
        {"conversation": write(SHAREGPT)},
        {"prompt": write(ASKED), "completion": write(ANSWER)},
        {"prompt": write(ASKED), "completion": ANSWER[0]["content"]},
        {"prompt": write(SHAREGPT[:1]), "completion": write(SHAREGPT[1:])},
        {"instruction": ASKED[0]["content"], "output": write(ANSWER)},
        {"query": write(ASKED), "response": write(ANSWER)},
    ]
    for values in rows:
        made = read(values)
        assert made.messages == ASKED + ANSWER and made.noticed == {TEXT_LISTS: 1}, values
    assert read({"dialog": write(ASKED + ANSWER)}, columns={"turns": "dialog"}).messages == ASKED + ANSWER
    renamed = read({"q": write(ASKED), "a": write(ANSWER)}, columns={"prompt": "q", "completion": "a"})
    assert renamed.messages == ASKED + ANSWER and renamed.noticed == {TEXT_LISTS: 1}
    swapped = [{"role": "Human", "content": "q"}, {"role": "Bot", "content": "a"}]
    roles = {"Human": "user", "Bot": "assistant"}
    assert [turn["role"] for turn in read({"messages": write(swapped)}, roles=roles).messages] == ["user", "assistant"]


@pytest.mark.parametrize("write", WRITERS, ids=["json", "indented", "repr", "numpy", "numpy repr"])
def test_text_that_is_a_list_of_messages_in_pairs(write: Any) -> None:
    rows = [
        {"prompt": ASKED[0]["content"], "chosen": write(ANSWER), "rejected": write(WORSE)},
        {"prompt": write(ASKED), "chosen": write(ANSWER), "rejected": write(WORSE)},
        {"chosen": write(ASKED + ANSWER), "rejected": write(ASKED + WORSE)},
        {"prompt": "ignored", "chosen": write(ASKED + ANSWER), "rejected": write(ASKED + WORSE)},
        {"prompt": write(ASKED), "output_1": write(WORSE), "output_2": write(ANSWER), "preference": 2},
        {"context": write(ASKED), "chosen": write(ANSWER), "rejected": write(WORSE)},
    ]
    for values in rows:
        pair = read_pair(values)
        assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, ANSWER[0], WORSE[0]), values
        assert pair.noticed == {TEXT_LISTS: 1}


@pytest.mark.parametrize(
    "answer",
    [
        '{"role": "assistant", "content": "x"}',
        "[]",
        "[1, 2]",
        '[{"name": "Ada", "role": "engineer"}]',
        '[{"role": "user"}]',
        '["role", "content"]',
        '[["user", "content"]]',
        '[{"role": 1, "content": "x"}]',
        "[\\d+]",
        "The list [{'role': 'user', 'content': 'x'}] is one",
    ],
)
def test_other_json_stays_text(answer: str) -> None:
    made = read({"prompt": "q", "completion": answer})
    assert made.messages[1:] == [{"role": "assistant", "content": answer}] and made.noticed == {}
    assert read_pair({"prompt": "q", "chosen": answer, "rejected": "b"}).chosen["content"] == answer


@pytest.mark.parametrize(
    "answer",
    ["[{'role': 'user', 'content': x}]", "[{'role': 'assistant', 'content': 'a', 'calls': nan}]", '[{"role": "u'],
)
def test_what_only_begins_like_a_list_is_text_and_counted(answer: str) -> None:
    made = read({"prompt": "q", "completion": answer})
    assert made.messages[1]["content"] == answer and made.noticed == {NO_LISTS: 1}


def test_a_list_of_texts_that_are_turns_is_these() -> None:
    for write in (json.dumps, repr):
        for turns in (ASKED + ANSWER, SHAREGPT):
            made = read({"messages": [write(turn) for turn in turns]})
            assert made.messages == ASKED + ANSWER and made.noticed == {TEXT_LISTS: 1}
        pair = read_pair(
            {"chosen": [write(turn) for turn in ASKED + ANSWER], "rejected": list(map(write, ASKED + WORSE))}
        )
        assert (pair.prompt, pair.chosen, pair.rejected) == (ASKED, ANSWER[0], WORSE[0])
    with pytest.raises(BadRow, match="a list of 2 texts, which do not say who speaks"):
        read({"messages": [json.dumps(ASKED[0]), "a"]})


def test_what_a_question_is_about_stays_text() -> None:
    chat = json.dumps(ASKED + ANSWER)
    for name in ("input", "context"):
        made = read({"instruction": "Sum up.", name: chat, "output": "a"})
        assert made.messages[0]["content"] == f"Sum up.\n\n{chat}"
        asked = {"instruction": "Sum up.", name: chat, "chosen": "a", "rejected": "b"}
        assert read_pair(asked).prompt[0]["content"] == f"Sum up.\n\n{chat}"


def test_columns_of_turns_say_what_is_wrong_with_their_text() -> None:
    for text, says in {
        "hello": "messages: got 'hello'; must be a list of turns",
        "[{": "messages: got '[{'; must be a list of turns",
        "[]": "messages is empty",
        '["a"]': "messages[0]: got 'a'",
        '[{"role": "user", "content": "\\ud800"}]': "messages: an escape is half of a surrogate pair",
    }.items():
        with pytest.raises(BadRow) as caught:
            read({"messages": text})
        assert says in str(caught.value)
    history = read({"instruction": "i", "output": "a", "history": '[["q", "r"]]'}).messages
    assert [turn["content"] for turn in history] == ["q", "r", "i", "a"]


@pytest.mark.parametrize("turns", [ASKED + ANSWER, SHAREGPT])
def test_an_object_of_lists_is_its_turns(turns: list[dict[str, Any]]) -> None:
    """As datasets' Sequence of objects lies in a table; a key that no turn has is null."""
    columns = {key: [turn[key] for turn in turns] for key in turns[0]}
    for name in ("messages", "conversations", "conversation"):
        for more in ({}, {"weight": None}):
            assert read({name: columns | more}).messages == ASKED + ANSWER
    for columns["content"] in (["a"], "a"):
        with pytest.raises(BadRow, match="messages: got a mapping with .*; must be a list of turns"):
            read({"messages": columns | {"role": ["user", "assistant"]}}, format="messages")


def test_an_object_of_lists_is_a_side_of_a_pair() -> None:
    sides = [{key: [turn[key] for turn in ASKED + answer] for key in ASKED[0]} for answer in (ANSWER, WORSE)]
    pair = read_pair({"chosen": sides[0], "rejected": sides[1]})
    assert [pair.prompt, [pair.chosen], [pair.rejected]] == [ASKED, ANSWER, WORSE]


def test_roles_with_blanks_around_them() -> None:
    turns = [{"role": " User ", "content": "q"}, {"role": "assistant\n", "content": "a"}]
    assert [turn["role"] for turn in read({"messages": turns}).messages] == ["user", "assistant"]


def test_messages_as_text_whatever_their_first_key() -> None:
    def more(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": 1, "tool_calls": None} | turn for turn in turns]

    expected = ASKED + ANSWER
    assert read({"prompt": json.dumps(more(ASKED)), "completion": repr(more(ANSWER))}).messages == expected
    assert read({"prompt": json.dumps(more(SHAREGPT[:1])), "completion": "a"}).messages[0] == ASKED[0]
    each = [json.dumps(turn) for turn in more(ASKED + ANSWER)]
    assert read({"messages": each}).messages == read({"prompt": each[:1], "completion": each[1:]}).messages == expected
    people = json.dumps([{"id": 1, "role": "admin", "content": "x"}, {"id": 2, "from": "Bern", "value": 3}])
    assert read({"prompt": "q", "completion": people}).messages[-1]["content"] == people


def test_a_prompt_is_alone_beside_columns_that_hold_nothing() -> None:
    row = {"prompt": None, "messages": None, "context": json.dumps(ASKED), "chosen": "a", "rejected": "b"}
    assert read_pair(row).prompt == ASKED
