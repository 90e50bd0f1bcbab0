"""Column mappings: what is put in is never read again, and every mistake of a mapping has its line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.column_files import load_column_file, suggested
from hybrid_ft.finetune.data.messages.columns import pair_format, row_format
from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.shipped import column_names

Write = Callable[[str], str]
PLAIN = 'columns: {messages: [{role: user, content: "{{ q }}"}, {role: assistant, content: "{{ a }}"}]}\n'
ASKED = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Because."}
BAD = {"role": "assistant", "content": "No."}

PAIRS: dict[str, dict[str, Any]] = {
    "pku-safe-rlhf": {"prompt": "Why?", "response_0": "No.", "response_1": "Because.", "better_response_id": 1},
    "shp": {"history": "Why?", "human_ref_A": "Because.", "human_ref_B": "No.", "labels": 1},
    "helpsteer3": {"context": [ASKED], "response1": "Because.", "response2": "No.", "overall_preference": -2},
    "argilla-preferences": {"instruction": "Why?", "chosen_response": "Because.", "rejected_response": "No."},
    "stack-exchange-paired": {"question": "Why?", "response_j": "Because.", "response_k": "No."},
    "openai-preference": {"input": {"messages": [ASKED]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    "chatbot-arena": {"conversation_a": [ASKED, BAD], "conversation_b": [ASKED, GOOD], "winner": "model_b"},
}


@pytest.fixture
def file(tmp_path: Path) -> Write:
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def source(columns: Any, **more: Any) -> Source:
    return Source.model_validate({"path": "rows.jsonl", "columns": columns, **more})


def read(columns: Any, values: dict[str, Any], **more: Any) -> Conversation:
    form = row_format(source(columns, **more), [Row(1, values)])
    assert form is not None
    return form.convert(values)


def turns(columns: Any, values: dict[str, Any], **more: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in read(columns, values, **more).messages]


def pair(columns: Any, values: dict[str, Any], **more: Any) -> Preference:
    form = pair_format(source(columns, **more), [Row(1, values)])
    assert form is not None
    return form.convert(values)


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
@settings(max_examples=50)
def test_text_is_put_in_as_it_is(question: str, answer: str) -> None:
    values = {"question": question, "answer": answer}
    assert turns("gsm8k", values) == [("user", question), ("assistant", answer)]
    inline = {"prompt": "{{ question }}", "completion": "{{ answer }}"}
    assert turns(inline, values) == [("user", question), ("assistant", answer)]


def test_a_template_in_the_data_is_plain_text() -> None:
    mapping = {"prompt": "{{ q }} {{ a }}", "completion": "{{ a }}"}
    values = {"q": "{{ a }}", "a": "{% if q %}{{ q }}{% endif %}"}
    assert turns(mapping, values) == [("user", f"{values['q']} {values['a']}"), ("assistant", values["a"])]


def test_everything_a_mapping_can_say(file: Write) -> None:
    name = file(
        """
columns:
  messages:
    - {role: system, content: Answer., when: formal}
    - role: user
      content: |-
        {{ qa.question }}
        {% for option in qa.options %}
        {{ "ABCD"[loop.index0] }}. {{ option }} ({{ loop.index }})
        {% endfor %}
        hint: {{ hint or "none" }}; {{ n }} {{ f }} {{ t }} {{ row["a column"] }}
    - role: assistant
      content: "{{ {0: 'first', 1: 'second'}[cop if cop is defined else answer] }}"
      reasoning: "{{ why }}"
  tools: tools
"""
    )
    values = {
        "qa": {"question": "q?", "options": ["x", 2]},
        "answer": 0,
        "hint": None,
        "n": 10**20,
        "f": 0.5,
        "t": True,
        "a column": "c",
        "why": "since",
        "formal": " ",
        "tools": '[{"name": "f"}]',
        "extra": 1,
    }
    form = row_format(source(name), [Row(1, values)])
    assert form is not None
    made = form.convert(values)
    assert made.messages == [
        {"role": "user", "content": f"q?\nA. x (1)\nB. 2 (2)\nhint: none; {10**20} 0.5 true c"},
        {"role": "assistant", "content": "first", "reasoning_content": "since"},
    ]
    assert made.tools == [{"name": "f"}]
    assert set(values) - form.columns == {"extra"}
    formal = form.convert(values | {"formal": "yes", "cop": 1})
    assert formal.messages[0] == {"role": "system", "content": "Answer."}
    assert formal.messages[-1]["content"] == "second"
    del values["formal"]
    assert len(form.convert(values).messages) == 2


def test_a_small_rename_needs_no_file() -> None:
    values = {"q": "Why?", "a": "Because.", "sys": "Be brief."}
    renamed = {"prompt": "q", "completion": "a", "system": "sys"}
    assert turns(renamed, values) == [("system", "Be brief."), ("user", "Why?"), ("assistant", "Because.")]
    dialog = {"dialog": [{"role": "Human", "content": "Why?"}, {"role": "Bot", "content": "Because."}]}
    roles = {"Human": "user", "Bot": "assistant"}
    assert turns({"turns": "dialog"}, dialog, roles=roles) == [("user", "Why?"), ("assistant", "Because.")]
    assert turns(None, {"messages": dialog["dialog"]}, roles=roles) == [("user", "Why?"), ("assistant", "Because.")]


def test_roles_of_pairs_can_have_other_names() -> None:
    values = {"prompt": [{"role": "Human", "content": "Why?"}], "chosen": "Because.", "rejected": "No."}
    assert pair(None, values, roles={"Human": "user"}).prompt == [ASKED]
    mapped = {"ask": values["prompt"], "good": [{"from": 0, "value": "Because."}], "bad": "No."}
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    got = pair(columns, mapped, roles={"Human": "user", "0": "assistant"})
    assert (got.prompt, got.chosen, got.rejected) == ([ASKED], GOOD, BAD)


def test_turns_keep_calls_reasoning_and_training_flags() -> None:
    call = {"name": "f", "arguments": {"x": 1}}
    said = [
        {"speaker": "A", "said": {"text": "q"}},
        {"speaker": "B", "said": {"text": ""}, "tool_calls": [call], "reasoning_content": "hm", "train": False},
        {"speaker": "B", "said": {"text": "a"}, "score": 3},
    ]
    columns = {"turns": "dialog.turns", "role": "speaker", "content": "said.text"}
    made = read(columns, {"dialog": {"turns": said}}, roles={"A": "user", "B": "assistant"})
    assert made.messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert made.messages[1]["reasoning_content"] == "hm"
    assert (made.untrained, made.unused) == ({1}, {"messages[].score"})
    with pytest.raises(BadRow, match=r"dialog.turns\[0\].role: got 'C'; must be one of system"):
        read(columns, {"dialog": {"turns": [{"speaker": "C", "said": {"text": "q"}}]}})


def test_tool_calls() -> None:
    calls = '[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]'
    made = read("xlam-function-calling", {"query": "q", "tools": '[{"name": "f"}]', "answers": calls})
    assert [call["function"]["name"] for call in made.messages[1]["tool_calls"]] == ["f", "g"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"q": "x", "b": "y"}, r"column a is missing \(found q, b\)"),
        ({"q": "x", "a": None}, "a is null"),
        ({"q": "x", "a": ["y"]}, r"a: got a list of 1; write how it becomes text, such as \{\{ a \| join\(', '\) \}\}"),
        (
            {"q": "x", "a": {"b": 1}},
            r"a: got a mapping with b; write how it becomes text, such as \{\{ a \| tojson \}\}",
        ),
        ({"q": "x", "a": float("nan")}, "a: got nan; must be a string or a number"),
        ({"q": "x", "a": ""}, r"columns.messages\[1\]: the assistant's turn is empty"),
    ],
)
def test_rows_that_a_mapping_cannot_read(values: dict[str, Any], says: str, file: Write) -> None:
    form = row_format(source(file(PLAIN)), [Row(1, {"q": "x", "a": "y"})])
    assert form is not None
    with pytest.raises(BadRow, match=says):
        form.convert(values)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PLAIN + "colums: {}\n", ":2: unknown key colums; did you mean columns?"),
        (PLAIN.replace("role: user", "role: human"), ":1: columns.messages.0.role: got 'human'"),
        ("about: x\n", "columns is missing"),
        ("columns: {prompt: q}\n", "must have messages, turns, or prompt and completion"),
        ("columns: {messages: [{role: user}]}\n", "the user message must have content or tool_calls"),
        ("columns: {prompt: q, completion: a, turns: t}\n", "must have messages, turns, or prompt and completion"),
        ("columns: {prompt: q, completion: a, role: r}\n", "name the column that holds those: turns"),
        ("columns: {prompt: q, completion: a}\nroles: {A: human}\n", "roles.A: got 'human'"),
        ("columns: {prompt: q, chosen: good}\n", "must name chosen and rejected"),
        ("columns: {chosen: a, rejected: b, completion: c}\n", "must map rows or pairs, not both"),
        ("columns: {output_1: a, output_2: b, preference: c}\npreference: {x: 3}\n", "preference.x"),
        ("columns: {promt: q, chosen: good, rejected: bad}\n", ":1: unknown key columns.promt"),
        ("a: [", "not YAML"),
        ("", ": is empty; a column mapping must be a mapping of keys such as signature:, columns:, roles:"),
        ("a: 1\n---\nb: 2", ":2: a second document starts here; a column mapping is one document"),
        ("about: " + "x" * 70_000, ": larger than 64 kB; a column mapping is a short text file"),
    ],
)
def test_mistakes_in_a_file(text: str, says: str, file: Write) -> None:
    name = file(text)
    with pytest.raises(InputError) as error:
        load_column_file(name)
    assert says in f"{error.value}\n" and str(error.value).startswith(name)


@pytest.mark.parametrize("template", ["{{ q", "{% for x in q %}{{ x }}", "{{ q | nosuchfilter }}"])
def test_a_template_that_is_not_one_is_named(template: str) -> None:
    with pytest.raises(InputError) as error:
        row_format(source({"prompt": template, "completion": "a"}), [Row(1, {"q": "x", "a": "y"})])
    assert "must be a Jinja2 template" in str(error.value) and "\n" not in str(error.value)


def test_a_mapping_that_does_not_fit_the_columns() -> None:
    rows = [Row(1, {"questions": "q", "answer": "a"})]
    with pytest.raises(InputError, match=r"no column question; did you mean questions\? \(found answer, questions\)"):
        row_format(source("gsm8k"), rows)
    with pytest.raises(InputError, match=r"no column question; did you mean questions\?"):
        row_format(source({"prompt": "{{ question }}", "completion": "answer"}), rows)
    with pytest.raises(InputError, match=r"columns gsm8: neither .* did you mean gsm8k\?"):
        load_column_file("gsm8")
    with pytest.raises(InputError, match="columns gsm8k: is for rows; the recipe trains on pairs"):
        pair_format(source("gsm8k"), rows)
    with pytest.raises(InputError, match="columns shp: is for pairs; the recipe trains on rows"):
        row_format(source("shp"), rows)


@pytest.mark.slow
def test_shipped_mappings_are_suggested_for_the_files_they_read() -> None:
    assert len(column_names()) >= 16
    for name in column_names():
        shipped = load_column_file(name)
        assert shipped.about.strip()
        for columns in shipped.signature:
            assert suggested(columns, pairs=shipped.columns.pairs) == name
            assert suggested(columns, pairs=not shipped.columns.pairs) != name
            form = (pair_format if shipped.columns.pairs else row_format)(
                source(name), [Row(1, dict.fromkeys(columns))]
            )
            assert form is not None and form.columns <= {*columns, "answer", "label"}
    assert suggested(["question", "answer", "id"], pairs=False) == "gsm8k"
    assert suggested(["a", "b"], pairs=False) is None


def test_a_mapping_that_would_leave_out_part_of_the_question_is_not_suggested() -> None:
    assert suggested(["question", "answer", "options"], pairs=False) is None
    assert suggested(["text", "code", "test_list", "context"], pairs=False) is None


@pytest.mark.parametrize(
    ("name", "row", "question", "reply"),
    [
        (
            "medqa-options",
            {
                "question": "Which?",
                "answer": "heart",
                "options": {"B": "heart", "A": "lung"},
                "meta_info": "",
                "answer_idx": "B",
            },
            "Which?\n\nA. lung\nB. heart",
            "heart\n\nThe answer is B.",
        ),
        ("evol-instruct", {"instruction": "Add.", "response": "x\r\ny\rz"}, "Add.", "x\ny\nz"),
    ],
)
def test_a_shipped_mapping_reads_its_dataset(name: str, row: dict[str, Any], question: str, reply: str) -> None:
    rows = [Row(1, row)]
    form = row_format(source(name), rows)
    assert form is not None
    conversation = form.convert(row)
    assert isinstance(conversation, Conversation)
    asked, answered = (message["content"].strip() for message in conversation.messages)
    assert (asked, answered) == (question, reply)


@pytest.mark.parametrize("name", PAIRS)
def test_a_shipped_mapping_of_pairs_reads_its_dataset(name: str) -> None:
    got = pair(name, PAIRS[name])
    assert (got.prompt, got.chosen, got.rejected) == ([ASKED], GOOD, BAD)
    assert suggested([*PAIRS[name], "id"], pairs=True) == name


def test_every_shipped_mapping_of_pairs_has_a_row_here() -> None:
    assert sorted(PAIRS) == [name for name in column_names() if load_column_file(name).columns.pairs]


@pytest.mark.parametrize("value", [-1, 1, 1.0, "1", 0])
def test_a_value_means_what_the_mapping_says(value: Any) -> None:
    values = PAIRS["helpsteer3"] | {"overall_preference": value}
    if value == 0:
        with pytest.raises(Unusable, match="tie"):
            pair("helpsteer3", values)
    else:
        assert pair("helpsteer3", values).chosen == (GOOD if value == -1 else BAD)
    inline = {"prompt": "q", "output_1": "x", "output_2": "y", "preference": "best"}
    row = {"q": "Why?", "x": "No.", "y": "Because.", "best": "second"}
    assert pair(inline, row, preference={"first": 1, "second": 2}).chosen == GOOD


def test_complaints_name_the_columns_of_the_dataset() -> None:
    with pytest.raises(BadRow, match="^labels: got 3; must be one of 1, 0$"):
        pair("shp", PAIRS["shp"] | {"labels": 3})
    with pytest.raises(BadRow, match="^response_0 is null; a pair needs both answers"):
        pair("pku-safe-rlhf", PAIRS["pku-safe-rlhf"] | {"response_0": None})


def test_a_mapping_reaches_into_objects() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    values = PAIRS["openai-preference"] | {"input": {"messages": [ASKED], "tools": [tool]}}
    assert pair("openai-preference", values).tools == [tool]
    with pytest.raises(BadRow, match="^input.messages is missing; the answers need what they answer"):
        pair("openai-preference", values | {"input": "Why?"})


def test_pairs_are_filled_in_by_templates_too() -> None:
    columns = {"prompt": "{{ title }}\n\n{{ body }}", "chosen": "good", "rejected": "bad"}
    got = pair(columns, {"title": "T", "body": "B", "good": "x", "bad": "y"})
    assert got.prompt == [{"role": "user", "content": "T\n\nB"}]
