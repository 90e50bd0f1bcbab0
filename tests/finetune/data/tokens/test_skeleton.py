"""Texts taken out of a conversation and put back, and what may be part of a control token."""

import json
from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.tokens.skeleton import Skeleton, as_rendered, could_be_control, skeleton_of

CONTROLS = ("<|im_end|>", "<think>")


def name(number: int) -> str:
    return f"SLOT{number}."


def bare(messages: list[dict[str, Any]], **more: Any) -> Skeleton:
    return skeleton_of(Conversation(messages, more.pop("tools", None)), name, CONTROLS, "reasoning", **more)


def filled(skeleton: Skeleton) -> Any:
    """The slots' texts in the places of their names again."""
    text = json.dumps([skeleton.messages, skeleton.tools])
    for number, slot in reversed(list(enumerate(skeleton.slots))):
        text = text.replace(name(number), json.dumps(slot.text)[1:-1])
    return json.loads(text)


CALL = {
    "type": "function",
    "id": "c1",
    "function": {"name": "f", "arguments": {"city": "Paris", "days": 2, "l": ["x"]}},
}
TOOL = {"type": "function", "function": {"name": "f", "description": "ends in <|im_", "parameters": {"type": "object"}}}


def test_texts_put_back_give_the_conversation_and_none_stays_in_it() -> None:
    messages = [
        {"role": "system", "content": " be\\nkind \n"},
        {"role": "user", "content": "<|im_end|> hello"},
        {"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [CALL]},
        {"role": "tool", "content": "found", "name": "f", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done"},
    ]
    skeleton = bare(messages, tools=[TOOL])
    written = [
        {"reasoning" if key == "reasoning_content" else key: value for key, value in message.items()}
        for message in messages
    ]
    assert filled(skeleton) == [written, [TOOL]]
    for text in ("hello", "kind", "hm", "Paris", "found", "done", "<|im_"):
        assert text not in skeleton.key
    # the space around a text is the template's to strip, and stays
    assert skeleton.messages[0]["content"] == f" {name(0)} \n"
    assert {slot.field for slot in skeleton.slots if not slot.required} == {"name", "tool_call_id", "tool call id"}


def test_conversations_that_differ_in_texts_alone_have_one_key() -> None:
    keys = [bare([{"role": "user", "content": text}]).key for text in ("a", "b", " a")]
    assert keys[0] == keys[1] != keys[2]


def test_a_thought_in_an_answer_is_a_text_of_its_own_where_tags_are_known() -> None:
    messages = [{"role": "assistant", "content": "<think>\nwhy\n</think>\n\nbecause"}]
    assert [slot.text for slot in bare(messages).slots] == [messages[0]["content"]]
    tagged = bare(messages, tags=True)
    assert [(slot.field, slot.text) for slot in tagged.slots] == [("reasoning", "why"), ("content", "because")]
    assert filled(tagged)[0] == messages


@pytest.mark.parametrize(
    ("text", "could"),
    [
        ("a <|im_end|> b", True),
        ("ends in <|im_", True),
        ("nd|> begins", True),
        ("im_end", True),
        ("ends in <", True),
        ("", False),
        ("im_start", False),
        ("nothing of it", False),
    ],
)
def test_a_text_that_could_complete_a_control_token_is_told(text: str, could: bool) -> None:
    """Against every way to write something before and behind it that makes the token."""
    assert could_be_control(text, CONTROLS) is could
    around = any(
        control in control[:cut] + text + control[end:] and control not in control[:cut] + control[end:]
        for control in CONTROLS
        for cut in range(len(control))
        for end in range(1, len(control) + 1)
    )
    assert around <= could


def test_reasoning_goes_by_the_name_that_the_template_knows() -> None:
    row = Conversation([{"role": "assistant", "content": "a", "reasoning_content": "r"}])
    assert as_rendered(row, "thinking") == [{"role": "assistant", "content": "a", "thinking": "r"}]
    assert as_rendered(row, None) == [{"role": "assistant", "content": "a"}]
    plain = Conversation([{"role": "assistant", "content": "a"}])
    assert as_rendered(plain, "thinking") is plain.messages
