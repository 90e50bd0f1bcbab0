from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.messages.pair_forms import PairForm, preferred, recognise_pairs
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

ASKED = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Because."}
BAD = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [ASKED, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "So?"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def form_of(values: dict[str, Any]) -> PairForm:
    form = recognise_pairs([Row(1, values)])
    assert form is not None
    return form


def read(values: dict[str, Any]) -> Preference:
    return form_of(values).convert(values)


def from_value(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


@pytest.mark.parametrize(
    ("values", "prompt"),
    [
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, [ASKED]),
        ({"question": "Why?", "chosen": "Because.", "rejected": "No."}, [ASKED]),
        ({"system": "Be brief.", "question": "Why?", "chosen": "Because.", "rejected": "No."}, [SYSTEM, ASKED]),
        ({"system": "", "prompt": "Why?", "chosen": "Because.", "rejected": "No."}, [ASKED]),
        ({"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD]}, [ASKED]),
        ({"prompt": TALK, "chosen": [GOOD], "rejected": [BAD]}, TALK),
        ({"prompt": [SYSTEM, *TALK], "chosen": "Because.", "rejected": "No."}, [SYSTEM, *TALK]),
        ({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}, TALK),
        ({"prompt": "Why?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, [ASKED]),
        ({"prompt": None, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, [ASKED]),
        ({"system": "Be brief.", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, [SYSTEM, ASKED]),
        ({"system": "Be brief.", "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]}, [SYSTEM, ASKED]),
        ({"chosen": from_value([*TALK, GOOD]), "rejected": from_value([*TALK, BAD])}, TALK),
        (
            {
                "conversations": from_value([SYSTEM, *TALK]),
                "chosen": from_value([GOOD])[0],
                "rejected": from_value([BAD])[0],
            },
            [SYSTEM, *TALK],
        ),
        ({"messages": TALK, "chosen": GOOD, "rejected": BAD}, TALK),
        ({"chosen": [*TALK, GOOD], "rejected": "No."}, TALK),
        ({"prompt": "Why?", "messages": [ASKED, GOOD], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, [ASKED]),
        ({"instruction": "Why?", "input": "", "output": "Because.", "chosen": "Because.", "rejected": "No."}, [ASKED]),
        (
            {"instruction": "Why?", "input": "The sky", "chosen": "Because.", "rejected": "No."},
            [{"role": "user", "content": "Why?\n\nThe sky"}],
        ),
        (
            {"instruction": "So?", "history": [["Why?", "Hm."]], "chosen": "Because.", "rejected": "No."},
            TALK,
        ),
        (
            {
                "chosen": "\n\nHuman: Why?\n\nAssistant: Hm.\n\nHuman: So?\n\nAssistant: Because.",
                "rejected": "\n\nHuman: Why?\n\nAssistant: Hm.\n\nHuman: So?\n\nAssistant: No.",
            },
            TALK,
        ),
        (
            {
                "prompt": "\n\nHuman: Why?\n\nAssistant: Hm.\n\nHuman: So?\n\nAssistant:",
                "chosen": " Because.",
                "rejected": "No.",
            },
            TALK,
        ),
        ({"instruction": "Why?", "output_1": "Because.", "output_2": "No.", "preference": 1}, [ASKED]),
        ({"prompt": "Why?", "output_1": "No.", "output_2": "Because.", "preference": "output_2"}, [ASKED]),
        ({"prompt": TALK, "output_1": [BAD], "output_2": [GOOD], "preference": 2.0}, TALK),
    ],
)
def test_every_form_comes_to_one_prompt_and_two_answers(values: dict[str, Any], prompt: list[dict[str, Any]]) -> None:
    pair = read(values)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.tools) == (prompt, GOOD, BAD, None)


def test_tools_are_kept_and_an_answer_may_be_a_call() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    pair = read(
        {"prompt": "Why?", "tools": "[" + str(TOOL).replace("'", '"') + "]", "chosen": [call], "rejected": [BAD]}
    )
    assert pair.tools == [TOOL]
    assert pair.chosen["tool_calls"][0]["function"] == {"name": "look", "arguments": {}}


def test_the_report_names_the_columns_that_are_read() -> None:
    whole = form_of({"prompt": "a", "id": 1, "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}).columns
    assert whole >= {"chosen", "rejected", "system", "system_prompt", "tools", "functions", "available_tools"}
    assert not whole & {"prompt", "id", "history", "input", "context"}
    assert read({"chosen": [ASKED, GOOD | {"score": 0}], "rejected": [ASKED, BAD]}).unused == {"chosen[].score"}
    assert form_of({"prompt": "a", "chosen": "b", "rejected": "c"}).columns >= {"prompt", "chosen", "rejected"}
    assert recognise_pairs([Row(1, {"prompt": "a", "completion": "b"})]) is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "Because."}, "identical answers"),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": " \n"}, "empty answer"),
        ({"prompt": "", "chosen": "Because.", "rejected": "No."}, "empty prompt"),
        ({"chosen": [ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]}, "no shared prompt"),
        ({"chosen": [*TALK, GOOD], "rejected": [ASKED, BAD]}, "no shared prompt"),
        ({"chosen": [ASKED, GOOD, ASKED, GOOD], "rejected": [ASKED, BAD, ASKED, GOOD]}, "no shared prompt"),
        ({"chosen": "Because.", "rejected": "No."}, "no shared prompt"),
        ({"chosen": [ASKED, GOOD, ASKED], "rejected": [ASKED, BAD, ASKED]}, "ends on a user turn"),
        ({"prompt": "Why?", "output_1": "Because.", "output_2": "No.", "preference": "tie"}, "no preference"),
    ],
)
def test_a_pair_that_teaches_nothing_is_named(values: dict[str, Any], kind: str) -> None:
    with pytest.raises(Unusable) as caught:
        read(values)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"prompt": "Why?", "chosen": "Because.", "rejected": None}, "rejected is null; a pair needs both answers"),
        ({"prompt": "Why?", "chosen": [], "rejected": [BAD]}, "chosen is an empty list; a pair needs both answers"),
        ({"prompt": None, "chosen": "Because.", "rejected": "No."}, "prompt is null"),
        ({"messages": [ASKED, GOOD], "chosen": "Because.", "rejected": "No."}, "messages ends on an assistant's turn"),
        ({"instruction": "Why?", "history": 3, "chosen": "Because.", "rejected": "No."}, "history: got 3"),
        ({"prompt": "Why?", "chosen": 7, "rejected": "No."}, "chosen: got 7; must be a list of turns"),
        (
            {"prompt": "Why?", "chosen": {"role": "bard", "content": "x"}, "rejected": "No."},
            "chosen[0].role: got 'bard'",
        ),
        ({"prompt": "Why?", "chosen": {"role": "assistant", "content": None}, "rejected": "No."}, "is null"),
        (
            {"system": "a", "chosen": [SYSTEM, ASKED, GOOD], "rejected": [SYSTEM, ASKED, BAD]},
            "there is a system turn as well",
        ),
        ({"prompt": "Why?", "output_1": "Because.", "output_2": "No.", "preference": 3}, "got 3"),
        ({"chosen": [ASKED, GOOD | {"weight": 0}], "rejected": [ASKED, BAD]}, "chosen[1]: says that it is not trained"),
        ({"prompt": "Why?", "chosen": "a", "rejected": BAD | {"train": False}}, "rejected[0]: says that it is not"),
        (
            {"prompt": "Why?", "chosen": GOOD | {"loss_scale": 0.5}, "rejected": BAD},
            "chosen[0]: says that it is not trained, or not fully",
        ),
        ({"prompt": "Why?", "chosen": "a", "rejected": "b", "loss": 0.5}, "loss: got 0.5; pairs have no weights"),
        ({"prompt": "Why?", "chosen": "a", "rejected": "b", "weight": 0}, "weight: got 0; the row says"),
    ],
)
def test_a_row_that_is_no_pair_says_what_is_wrong(values: dict[str, Any], text: str) -> None:
    with pytest.raises(BadRow) as caught:
        read(values)
    assert text in str(caught.value)


def test_a_missing_side_is_named_where_other_rows_have_it() -> None:
    form = form_of({"prompt": "Why?", "chosen": "Because.", "rejected": "No."})
    with pytest.raises(BadRow, match="rejected is missing"):
        form.convert({"prompt": "Why?", "chosen": "Because."})


@pytest.mark.parametrize(
    ("value", "best"), [(1, 1), ("2", 2), ("2.0", 2), (1.0, 1), ("Output_1", 1), ("output_2", 2), ("tie", 0)]
)
def test_preferences_are_read_however_a_table_writes_them(value: Any, best: int) -> None:
    assert preferred(value) == best


@pytest.mark.parametrize("value", [True, 0, 1.5, float("nan"), None, "left", [1]])
def test_a_preference_that_names_no_output_is_bad(value: Any) -> None:
    with pytest.raises(BadRow):
        preferred(value)


messages = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "bard", None, 3]),
        "from": st.sampled_from(["human", "gpt", None]),
        "content": st.sampled_from(["Why?", "", None, 7, [{"type": "text", "text": "a"}]]),
        "value": st.sampled_from(["Why?", "", None]),
    },
)
anything = st.one_of(
    st.sampled_from(["Why?", "", " ", "\n\nHuman: a\n\nAssistant:", "\n\nHuman: a\n\nAssistant: b", "[]", "{"]),
    st.sampled_from([None, True, 0, 1, 2, 1.5, [], {}, [[]], [["a", "b"]], [None], ["a"], "tie"]),
    messages,
    st.lists(messages, max_size=3),
)
columns = [
    "prompt",
    "messages",
    "instruction",
    "input",
    "history",
    "system",
    "tools",
    "output_1",
    "output_2",
    "preference",
]


@settings(max_examples=120)
@given(st.dictionaries(st.sampled_from([*columns, "chosen", "rejected"]), anything, max_size=8))
def test_whatever_a_row_holds_it_is_a_pair_or_says_why_not(values: dict[str, Any]) -> None:
    form = recognise_pairs([Row(1, values)])
    if form is None:
        return
    try:
        pair = form.convert(values)
    except (BadRow, Unusable) as reason:
        assert str(reason) and "\n" not in str(reason)
        return
    assert pair.prompt and pair.chosen["role"] == pair.rejected["role"] == "assistant" and pair.chosen != pair.rejected


@pytest.mark.parametrize("column", ["input", "query", "context"])
@pytest.mark.parametrize("asked", ["q", [{"role": "user", "content": "q"}]])
def test_a_prompt_under_a_rarer_name(column: str, asked: Any) -> None:
    """OpenRLHF's input, alone: not what stands beside another prompt."""
    values = {column: asked, "chosen": "a", "rejected": "b"}
    form = recognise_pairs([Row(1, values)])
    assert form is not None
    pair = form.convert(values)
    assert [turn["content"] for turn in (*pair.prompt, pair.chosen, pair.rejected)] == ["q", "a", "b"]
    assert column in form.columns and pair.unused == set()


def test_columns_that_hold_nothing_are_no_prompt() -> None:
    pair = read({"prompt": None, "question": "q", "chosen": "a", "rejected": "b", "output_1": None})
    assert pair.prompt == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("says", [{"role": "Model"}, {"role": None, "from": "bot"}])
def test_an_answer_alone_is_one_whichever_name_its_role_has(says: dict[str, Any]) -> None:
    sides = {name: [says | {"content": name, "value": name}] for name in ("chosen", "rejected")}
    form = recognise_pairs([Row(1, {"prompt": "q"} | sides)])
    assert form is not None and form.name == "answers" and "prompt" in form.columns
