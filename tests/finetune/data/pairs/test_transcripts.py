from hypothesis import given
from hypothesis import strategies as st

from hybrid_ft.finetune.data.messages.transcripts import is_transcript, split_transcript

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
