import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.noticed import CHATS_AS_TEXT, NOTES
from hybrid_ft.finetune.data.messages.plain_text import plain_text
from hybrid_ft.finetune.data.messages.transcripts import is_transcript, split_transcript
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.recipe.data_section import Source

NAMES = {"user": "Human", "assistant": "Assistant"}
turns = st.lists(
    st.tuples(
        st.sampled_from(list(NAMES)),
        st.text(st.sampled_from("aH \n:um"), max_size=12).filter(lambda t: t == t.strip("\n")),
    ),
    min_size=1,
    max_size=6,
)


def written(messages: list[dict[str, str]]) -> str:
    return "".join(f"\n\n{NAMES[message['role']]}: {message['content']}" for message in messages)


def test_a_transcript_is_split_at_its_marks() -> None:
    text = "\n\nHuman: What is\n\na yak?\n\nAssistant: An ox.  \n\nHuman: Human:\nAssistant: who?\n\nAssistant:\n\nYes"
    assert split_transcript(text) == [
        {"role": "user", "content": "What is\n\na yak?"},
        {"role": "assistant", "content": "An ox.  "},
        {"role": "user", "content": "Human:\nAssistant: who?"},
        {"role": "assistant", "content": "\n\nYes"},
    ]


def test_a_speaker_may_go_on_and_an_answer_may_be_empty() -> None:
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant:"
    assert [(m["role"], m["content"]) for m in split_transcript(text)] == [
        ("user", "a"),
        ("user", "b"),
        ("assistant", ""),
    ]


@given(turns)
def test_splitting_undoes_writing(parts: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in parts]
    assert split_transcript(written(messages)) == messages


def test_what_is_a_transcript() -> None:
    assert is_transcript("\n\nHuman: a\n\nAssistant: b")
    assert is_transcript("Human: a\n\nAssistant: b")
    assert not is_transcript("The Human: a\n\nAssistant: b")
    assert not is_transcript("Human: resources is a department.")
    assert not is_transcript(None)


@pytest.mark.parametrize(
    "text",
    [
        "### Human: q### Assistant: a### Human: r",
        "### Instruction:\nDo it.\n\n### Response:\nDone.",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
        "<s>[INST] q [/INST] a </s>",
        "<|prompter|>q<|endoftext|><|assistant|>a<|endoftext|>",
        "<start_of_turn>user\nq<end_of_turn>",
        "USER: q\n\n\nASSISTANT: a <|endoftext|>",
        "Question: q?\nAnswer: a",
    ],
)
def test_a_chat_written_out_is_noticed(text: str) -> None:
    assert plain_text({"text": text}).noticed == {CHATS_AS_TEXT: 1}


@pytest.mark.parametrize(
    "text",
    [
        "The delta rule corrects what a state holds.",
        "A human: being. The assistant left.",
        "The user:\n\ngroup says no.",
        "## Instruction set\nThe response time is short.",
        "The question: what is it?",
    ],
)
def test_other_texts_are_not(text: str) -> None:
    assert plain_text({"text": text}).noticed == {}


def test_the_note_on_chats_is_followed(tmp_path: Path) -> None:
    note = NOTES[CHATS_AS_TEXT].format(unit="row")
    assert "give messages: [{role: user, content: ...}, ...]" in note
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    ((_, made),) = conversations(Source(path=str(rows)), SourceCounts(""))
    assert isinstance(made, Conversation) and made.messages == turns
