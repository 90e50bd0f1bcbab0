"""Dataset cards: what is put in is never read again, and every mistake of a card has its line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.card_rows import card_form
from hybrid_ft.finetune.data.messages.cards import load_card, suggested
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe import shipped

Write = Callable[[str], str]
PLAIN = 'messages: [{role: user, content: "{q}"}, {role: assistant, content: "{a}"}]\n'


@pytest.fixture
def card(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "card.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def turns(name: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    messages = card_form(name, values).convert(values).messages
    return [(message["role"], message["content"]) for message in messages]


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
@settings(max_examples=50, deadline=None)
def test_text_is_put_in_as_it_is(question: str, answer: str) -> None:
    assert turns("gsm8k", {"question": question, "answer": answer}) == [("user", question), ("assistant", answer)]


def test_inserted_braces_are_not_read_again(card: Write) -> None:
    name = card('messages: [{role: user, content: "{{{q}}} {a}"}, {role: assistant, content: "{a}"}]')
    assert turns(name, {"q": "{a}", "a": "{{q}}"}) == [("user", "{{a}} {{q}}"), ("assistant", "{{q}}")]


def test_everything_a_card_can_say(card: Write) -> None:
    name = card(
        """
values:
  options: {column: qa.options, each: "{letter}. {item} ({number})", join: "\\n"}
  right: {column: [cop, answer], choose: {0: first, 1: second, true: yes}}
  hint: {column: hint, default: none}
messages:
  - {role: system, content: Answer., when: formal}
  - {role: user, content: "{qa.question}\\n{options}\\nhint: {hint}; {n} {f} {t}"}
  - {role: assistant, content: "{right}", reasoning: "{why}"}
tools: tools
"""
    )
    values = {
        "qa": {"question": "q?", "options": ["x", 2]},
        "answer": 1,
        "hint": None,
        "n": 10**20,
        "f": 0.5,
        "t": True,
        "why": "since",
        "formal": "",
        "tools": '[{"name": "f"}]',
        "extra": 1,
    }
    form = card_form(name, values)
    made = form.convert(values)
    assert made.messages == [
        {"role": "user", "content": f"q?\nA. x (1)\nB. 2 (2)\nhint: none; {10**20} 0.5 true"},
        {"role": "assistant", "content": "second", "reasoning_content": "since"},
    ]
    assert made.tools == [{"name": "f"}]
    assert set(values) - form.columns == {"extra"}
    formal = form.convert(values | {"formal": "yes", "cop": True})
    assert formal.messages[0] == {"role": "system", "content": "Answer."}
    assert formal.messages[-1]["content"] == "yes"


def test_turns_under_other_names(card: Write) -> None:
    name = card("turns: {column: dialog.turns, role: speaker, content: said.text, roles: {A: user, B: assistant}}")
    said = [{"speaker": "A", "said": {"text": "q"}}, {"speaker": "B", "said": {"text": "a"}}]
    assert turns(name, {"dialog": {"turns": said}}) == [("user", "q"), ("assistant", "a")]
    said[1] |= {"train": True, "score": 3}
    read = card_form(name, ["dialog"]).convert({"dialog": {"turns": [*said, said[1] | {"train": False}]}})
    assert (read.untrained, read.unused) == ({2}, {"dialog.turns[].score"})
    with pytest.raises(BadRow, match=r"dialog.turns\[0\].speaker: got 'C'; must be one of A, B, system"):
        turns(name, {"dialog": {"turns": [{"speaker": "C", "said": {"text": "q"}}]}})


def test_tool_calls(card: Write) -> None:
    calls = '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
    values = {"query": "q", "tools": '[{"name": "f"}]', "answers": calls}
    made = card_form("xlam-function-calling", values).convert(values)
    assert [call["function"]["name"] for call in made.messages[1]["tool_calls"]] == ["f", "g"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"q": "x"}, "column a is missing"),
        ({"q": "x", "a": None}, "a is null"),
        ({"q": "x", "a": ["y"]}, "a: got a list of 1; a list needs join"),
        ({"q": "x", "a": {"b": 1}}, "a: got a mapping with b"),
        ({"q": "x", "a": float("nan")}, "a: got nan"),
        ({"q": "x", "a": ""}, r"the card's messages\[1\]: the assistant's turn is empty"),
    ],
)
def test_rows_that_a_card_cannot_read(values: dict[str, Any], says: str, card: Write) -> None:
    form = card_form(card(PLAIN), ["q", "a"])
    with pytest.raises(BadRow, match=says):
        form.convert(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PLAIN + "messges: []\n", ":2: unknown key messges; did you mean messages?"),
        (PLAIN + "values: {x: {}}\n", "values.x.column is missing"),
        (PLAIN.replace("user", "human"), ":1: messages.0.role: got 'human'"),
        (PLAIN.replace("{q}", "{q"), "brace in '{q' opens or closes nothing"),
        ("about: x\n", "must have messages or turns"),
        ("messages: [{role: user}]\n", "the user message has neither content nor tool_calls"),
        (PLAIN + 'values: {x: {column: c, each: "{thing}"}}\n', "knows {item}, {number}, {letter}"),
        (PLAIN + "turns: {column: a, role: b, content: c}\n", "one of the two"),
        ("turns: {column: a, role: b, content: c, roles: {A: human}}\n", "turns.roles: got 'human'"),
        ("a: [", "not YAML"),
        ("", ": is empty; a dataset card must be a mapping of keys such as signature:, messages:, turns:"),
        ("a: 1\n---\nb: 2", ":2: a second document starts here; a dataset card is one document"),
        ("a: !x 1", "a dataset card holds plain values"),
        ("about: " + "x" * 70_000, ": larger than 64 kB; a dataset card is a short text file"),
        (PLAIN + "template: x\n", ":2: unknown key template; must be one of about, signature, "),
        ("messages: [{content: x}]\n", ":1: messages.0.role is missing\n"),
    ],
)
def test_mistakes_in_a_card(text: str, says: str, card: Write) -> None:
    name = card(text)
    with pytest.raises(InputError) as error:
        load_card(name)
    assert says in f"{error.value}\n" and str(error.value).startswith(name)


def test_a_card_that_does_not_fit_the_columns(card: Write) -> None:
    with pytest.raises(InputError, match=r"no column question; did you mean questions\? \(found answer, questions\)"):
        card_form("gsm8k", ["questions", "answer"])
    with pytest.raises(InputError, match=r"card gsm8: neither .* did you mean gsm8k\?"):
        load_card("gsm8")


def test_shipped_cards() -> None:
    assert len(shipped.card_names()) >= 8
    for name in shipped.card_names():
        card = load_card(name)
        assert card.about.strip()
        for columns in card.signature:
            # a file with just these columns is known as this dataset, and the card can read it
            assert suggested(columns) == name
            assert card_form(name, columns).columns <= set(columns) | {"answer", "label"}
    assert suggested(["question", "answer", "id"]) == "gsm8k"
    assert suggested(["a", "b"]) is None
