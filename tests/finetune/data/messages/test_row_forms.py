"""Rows to conversations: which form, from which columns, and what is wrong with a row, by field."""

from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.conversation import Conversation
from hybrid_ft.finetune.data.messages.row_forms import recognise
from hybrid_ft.finetune.data.sources.rows import BadRow, Row

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def read(values: dict[str, Any], wanted: str | None = None) -> Conversation:
    form = recognise([Row(1, values)], wanted)
    assert form is not None
    return form.convert(values)


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


FORMS: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", {"messages": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    ("messages", {"conversations": [user("q"), assistant("a")]}, [user("q"), assistant("a")]),
    (
        "messages",
        {"messages": [user([{"type": "text", "text": "q"}, {"type": "text", "value": "r"}]), assistant("a")]},
        [user("qr"), assistant("a")],
    ),
    (
        "messages",
        {
            "messages": [
                user("q"),
                assistant(
                    [
                        {"type": "reasoning", "value": "t"},
                        {"type": "tool_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
                    ]
                ),
                {"role": "function", "content": "r", "name": "f"},
                assistant("a", thinking="t"),
            ]
        },
        [
            user("q"),
            assistant("", reasoning_content="t", tool_calls=[CALL]),
            {"role": "tool", "content": "r", "name": "f"},
            assistant("a", reasoning_content="t"),
        ],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "", "functions": "f()"},
                user("q"),
                {"role": "assistant", "content": None, "function_calls": "f(x=1)"},
                {"role": "environment", "content": ""},
                {"role": "assistant", "function_call": {"name": "f", "arguments": {"x": 1}}},
            ]
        },
        [
            {"role": "system", "content": "", "functions": "f()"},
            user("q"),
            assistant("", function_calls="f(x=1)"),
            {"role": "environment", "content": ""},
            assistant("", tool_calls=[CALL]),
        ],
    ),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '[{"name": "f", "arguments": {"x": 1}}]'},
                {"from": "observation", "value": "r"},
                {"from": "gpt", "value": "a"},
            ],
        },
        [
            {"role": "system", "content": "s"},
            user("q"),
            assistant("", tool_calls=[CALL]),
            {"role": "tool", "content": "r"},
            assistant("a"),
        ],
    ),
    (
        "sharegpt",
        {"messages": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        [user("q"), assistant("a")],
    ),
    ("prompt-completion", {"prompt": "q", "completion": " a"}, [user("q"), assistant(" a")]),
    (
        "prompt-completion",
        {"prompt": [{"role": "system", "content": "s"}, user("q")], "completion": [assistant("a")]},
        [{"role": "system", "content": "s"}, user("q"), assistant("a")],
    ),
    ("alpaca", {"instruction": "i", "input": "x", "output": "a"}, [user("i\n\nx"), assistant("a")]),
    ("alpaca", {"instruction": "i", "input": " ", "output": "a"}, [user("i"), assistant("a")]),
    ("alpaca", {"instruction": "i", "input": None, "output": "a"}, [user("i"), assistant("a")]),
    ("alpaca", {"instruction": "", "input": "x", "output": "a"}, [user("x"), assistant("a")]),
    (
        "alpaca",
        {"instruction": "i", "output": "a", "system": "s", "history": [["q", "r"]]},
        [{"role": "system", "content": "s"}, user("q"), assistant("r"), user("i"), assistant("a")],
    ),
]


@pytest.mark.parametrize(("form", "values", "messages"), FORMS)
def test_forms(form: str, values: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    found = recognise([Row(1, values)], None)
    assert found is not None and found.name == form
    assert found.convert(values).messages == messages
    asked = recognise([Row(1, values)], form)
    assert asked is not None and asked.convert(values).messages == messages


def test_the_first_rows_decide_together() -> None:
    rows = [Row(1, {"instruction": "i", "output": "a"}), Row(2, {"instruction": "i", "input": "x", "output": "a"})]
    form = recognise(rows, None)
    assert form is not None and "instruction and input" in form.reads
    both = {"prompt": "p", "completion": "c", "messages": [user("q"), assistant("a")]}
    assert recognise([Row(1, both)], None).name == "messages"  # type: ignore[union-attr]
    assert recognise([Row(1, both)], "prompt-completion").name == "prompt-completion"  # type: ignore[union-attr]
    assert recognise([Row(1, {"text": "x"})], None).name == "text"  # type: ignore[union-attr]
    assert recognise([Row(1, {"text": "x", "label": 1})], None) is None
    assert recognise([Row(1, {"prompt": "p", "completion": "c"})], "alpaca") is None


@pytest.mark.parametrize("tools", [None, "", " ", "[]", [], "null"])
def test_no_tools(tools: Any) -> None:
    assert read({"messages": [user("q"), assistant("a")], "tools": tools}).tools is None


@pytest.mark.parametrize("tools", [[{"name": "f"}], '[{"name": "f"}]', ['{"name": "f"}']])
def test_tools(tools: Any) -> None:
    assert read({"prompt": "q", "completion": "a", "tools": tools}).tools == [{"name": "f"}]


def test_fields_that_are_left_out_are_named() -> None:
    turns = [{"role": "user", "content": "q", "score": 0.0}, {"role": "assistant", "content": "a", "name": "n"}]
    assert read({"messages": turns}).unused == {"messages[].score"}
    parts = [{"type": "text", "text": "q", "cache_control": {"type": "x"}, "index": None}]
    assert read({"messages": [user(parts), assistant("a")]}).unused == {"messages[].content[].cache_control"}
    shared = [{"from": "human", "value": "q", "id": 1}, {"from": "gpt", "value": "a"}]
    assert read({"conversations": shared}).unused == {"conversations[].id"}


def said(speaker: str, text: str, **more: Any) -> dict[str, Any]:
    return {"from": speaker, "value": text, **more}


FLAGS: list[tuple[dict[str, Any], set[int]]] = [
    ({"messages": [user("q"), assistant("a", train=False), user("r"), assistant("b")]}, {1}),
    ({"messages": [user("q"), assistant("a", weight=0), user("r"), assistant("b", weight=1)]}, {1}),
    ({"messages": [user("q"), assistant("a", weight=1.0), user("r"), assistant("b", weight=0.0)]}, {3}),
    ({"messages": [user("q") | {"loss_weight": 0.0}, assistant("a", loss_weight=1.0)]}, set()),
    ({"messages": [user("q") | {"weight": 0}, assistant("a", train=None, weight=True)]}, set()),
    ({"messages": [user("q"), assistant("a", train=False, weight=0), user("r"), assistant("b")]}, {1}),
    ({"system": "s", "conversations": [said("human", "q"), said("gpt", "a", loss=False), said("gpt", "b")]}, {2}),
    ({"conversations": [said("human", "q"), said("gpt", "a", train=True), said("gpt", "b", weight=0)]}, {2}),
    ({"prompt": [user("q"), assistant("a", train=False), user("r")], "completion": [assistant("b")]}, {1}),
    ({"prompt": [user("q")], "completion": [assistant("a", weight=0), user("r"), assistant("b")]}, {1}),
]


@pytest.mark.parametrize(("values", "untrained"), FLAGS)
def test_a_turns_own_flag_says_whether_it_is_trained(values: dict[str, Any], untrained: set[int]) -> None:
    found = read(values)
    assert found.untrained == untrained and found.unused == set()
    assert all(message.keys() <= {"role", "content"} for message in found.messages)


def parts(*texts: str, **mark: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} | mark for text in texts]


@pytest.mark.parametrize("name", ["train", "training", "trainable", "weight", "loss", "loss_weight", "loss_scale"])
def test_a_mark_has_many_names_and_places(name: str) -> None:
    for off, on in ((False, True), (0, 1), (0.0, 1.0)):
        turns = [user("q"), assistant("a", **{name: off}), user("r"), assistant("b", **{name: on})]
        shared = [said("human", "q"), said("gpt", "a", **{name: off}), said("gpt", "b", **{name: on})]
        of_parts = [user("q"), assistant(parts("a", "b", **{name: off})), assistant(parts("c", **{name: on}))]
        for values in ({"messages": turns}, {"conversations": shared}, {"messages": of_parts}):
            found = read(values)
            assert found.untrained == {1} and found.unused == set()
            assert read(values | {name: on}).untrained == {1} == read(values | {name: str(on)}).untrained
            for mark in (off, str(off)):
                with pytest.raises(
                    BadRow, match=f"{name}: got .*; leave such rows out, with only: {{{name}: true}}"
                ) as bad:
                    read(values | {name: mark})
                assert bad.value.kind == "training flag"


@pytest.mark.parametrize("name", ["mask", "masked", "loss_mask", "train_detail"])
def test_a_mark_that_means_now_this_now_that_is_refused(name: str) -> None:
    for values, where in (
        ({"messages": [user("q"), assistant("a", **{name: 1})]}, f"messages[1].{name}: got 1"),
        ({"messages": [user("q"), assistant(parts("a", **{name: 1}))]}, f"messages[1].content[0].{name}: got 1"),
        ({"prompt": "q", "completion": "a", name: 1}, f"{name}: got 1"),
    ):
        with pytest.raises(BadRow) as bad:
            read(values)
        assert str(bad.value).startswith(where) and "train: true or false" in str(bad.value)
        assert read({"prompt": "q", "completion": "a", name: None}).messages


def test_weights_of_turns_parts_and_rows() -> None:
    turns = [user("q"), assistant("a", weight=0.5), user("r"), assistant("b", loss=1), assistant("c", loss_scale=0)]
    assert read({"messages": turns}).weights == {1: [(None, 0.5)], 4: [(None, 0.0)]}
    half = read({"messages": turns, "weight": "0.5"})
    assert half.weights == {1: [(None, 0.25)], 3: [(None, 0.5)], 4: [(None, 0.0)]} and half.untrained == {4}
    assert half.noticed["turns_with_weights"] == 2 and half.whole() != read({"messages": turns}).whole()
    assert read({"prompt": "q", "completion": "a", "weight": 0.25, "system": "s"}).weights == {2: [(None, 0.25)]}
    several = [*parts("ab", train=False), *parts("cde"), *parts("f", weight=0.5)]
    made = read({"messages": [user("q"), assistant(several)]})
    assert made.weights == {1: [(0, 1.0), (2, 0.0), (5, 1.0), (6, 0.5), (None, 0.5)]} and made.untrained == set()
    thought = [{"type": "thinking", "thinking": "t", "weight": 0.1}, *parts("a")]
    call = [{"type": "tool_call", "tool_call": {"name": "f", "arguments": {}}, "train": False}]
    made = read({"messages": [user("q"), assistant([*thought, *call]), assistant("a")]})
    assert made.weights == {1: [(0, 0.1), (1, 1.0), (None, 0.0)]}


def test_roles_of_one_spelling_are_known_in_the_other() -> None:
    turns = [
        {"role": "developer", "content": "s"},
        {"role": "human", "content": "q"},
        {"role": "tool_call", "content": '<think>\nhm\n</think>\n{"name": "f", "arguments": {"x": 1}}'},
        {"role": "tool_response", "content": "r"},
        {"role": "gpt", "content": "a", "reasoning_content": "t"},
    ]
    wanted = [
        {"role": "system", "content": "s"},
        user("q"),
        assistant("", tool_calls=[CALL], reasoning_content="hm"),
        {"role": "tool", "content": "r"},
        assistant("a", reasoning_content="t"),
    ]
    assert read({"messages": turns}).messages == wanted
    names = {"role": "from", "content": "value"}
    shared = [{names.get(key, key): value for key, value in turn.items()} for turn in turns]
    assert read({"conversations": shared}).messages == wanted


def test_names_of_roles_in_capitals() -> None:
    turns = [{"role": "System", "content": "s"}, {"role": "User", "content": "q"}, {"role": "AI", "content": "a"}]
    assert read({"messages": turns}).messages == [{"role": "system", "content": "s"}, user("q"), assistant("a")]
    turns[2] = {"role": "Function_Call", "content": '{"name": "f", "arguments": {"x": 1}}'}
    assert read({"messages": turns}).messages[2] == assistant("", tool_calls=[CALL])


def test_what_stands_beside_query_and_response() -> None:
    made = read({"system": "s", "query": "r", "response": "b", "history": [["q", "a"]]})
    wanted = [{"role": "system", "content": "s"}, user("q"), assistant("a"), user("r"), assistant("b")]
    assert made.messages == wanted and made.unused == set()


def test_what_tables_write_for_a_missing_text_is_counted() -> None:
    for text, count in (("nan", 1), ("NaN", 1), ("<NA>", 1), ("None", 1), ("null", 1), ("Nan bread", 0), ("none", 0)):
        assert read({"prompt": "q", "completion": text}).noticed.get("turns_that_are_nan_or_null", 0) == count, text


def test_places_of_pictures_without_any_are_counted() -> None:
    for text, count in (("<image>\nWhat is it?", 1), ("hear <audio>", 1), ("an image", 0), ("<img>", 0)):
        noticed = read({"prompt": text, "completion": "a"}).noticed
        assert noticed.get("turns_with_placeholders_of_media", 0) == count, text


def row(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("text for a list", {"messages": "hello"}, "wrong type", "messages: got 'hello'; must be a list of turns"),
    ("null for a list", {"messages": None}, "null content", "messages is null"),
    ("no turns", row(), "no turns", "messages is empty"),
    ("no object", row("q", assistant("a")), "wrong type", "messages[0]: got 'q'"),
    ("role", row(user("q"), {"role": "bard", "content": "a"}), "unknown role", "messages[1].role: got 'bard'; must be one of system, user, assistant, tool"),
    ("no role", row({"content": "q"}), "unknown role", "messages[0]: has no role (found content); a turn is {role: user, content: ...}"),
    ("role after a question", row(user("q"), {"role": "bard", "content": "a"}), "unknown role", "say what it means, such as roles: {bard: assistant}"),
    ("role to quote", row(user("q"), {"role": "b: d", "content": "a"}), "unknown role", "such as roles: {'b: d': assistant}"),
    ("role first", row({"role": "bard", "content": "a"}), "unknown role", "say what it means, such as roles: {bard: user}"),
    ("no from", {"conversations": [said("human", "q"), {"text": "a"}]}, "unknown role", "conversations[1]: has no from (found text); a turn is {from: user, value: ...}"),
    ("a call as a part", row(user("q"), assistant([{"type": "tool_use", "name": "f", "input": {}}])), "part that is not text", "give it as the turn's tool_calls"),
    ("a result as a part", row(user([{"type": "tool_result", "content": "1"}])), "part that is not text", "a turn of its own, {role: tool, content: ...}"),
    ("a text in a list", {"prompt": ["q"], "completion": ["a"]}, "wrong type", 'prompt: got a list of 1 text; must be a string, or a list of turns (role, content); map it in columns as "{{ prompt[0] }}"'),
    ("texts in a list", {"prompt": "q", "completion": ["a", "b"]}, "wrong type", "completion: got a list of 2 texts; must be a string, or a list of turns (role, content); give each a row of its own"),
    ("role list", row({"role": ["user"], "content": "q"}), "unknown role", "messages[0].role: got a list of 1"),
    ("other form", row(user("q"), {"from": "gpt", "value": "a"}), "wrong form", "set format: sharegpt"),
    ("null user", row(user(None), assistant("a")), "null content", "messages[0].content is null (role user)"),
    ("null answer", row(user("q"), assistant(None)), "null content", "messages[1].content is null"),
    ("missing content", row(user("q"), {"role": "assistant"}), "null content", "messages[1].content is missing"),
    ("number", row(user("q"), assistant(42)), "not text", "messages[1].content: got 42; must be a string"),
    ("truth", row(user(True), assistant("a")), "not text", "messages[0].content: got true"),
    ("object", row(user({"text": "q"}), assistant("a")), "not text", "messages[0].content: got a mapping with text"),
    ("image", row(user([{"type": "image", "url": "x"}]), assistant("a")), "part that is not text", "messages[0].content[0]: got a part of type 'image'; this model reads text"),
    ("part no text", row(user([{"type": "text", "text": 5}]), assistant("a")), "not text", "messages[0].content[0].text: got 5"),
    ("bare part", row(user(["q"]), assistant("a")), "wrong type", "messages[0].content[0]: got 'q'; content is a text or a list"),
    ("no answer", row({"role": "system", "content": "s"}, user("q")), "no assistant turn", "no assistant turn"),
    ("empty answer", row(user("q"), assistant(" \n")), "empty answer", "messages[1]: the assistant's turn is empty"),
    ("empty prompt", row(user(""), assistant("a")), "empty prompt", "messages[0]: the user's turn is empty"),
    ("ends on user", row(user("q"), assistant("a"), user("r")), "ends on a user turn", "the row ends on a user turn"),
    ("ends on tool", row(user("q"), assistant("a"), {"role": "tool", "content": "r"}), "ends on a tool turn", "tool turn"),
    ("calling user", row({"role": "user", "content": "q", "tool_calls": [CALL]}, assistant("a")), "tool call", "role user cannot call tools"),
    ("call text", row(user("q"), assistant("", tool_calls="f(x=1)")), "not JSON", "messages[1].tool_calls: not JSON"),
    ("call name", row(user("q"), assistant("", tool_calls=[{"arguments": {}}])), "tool call", "messages[1].tool_calls: name is null"),
    ("arguments text", row(user("q"), assistant("", tool_calls=[{"name": "f", "arguments": "x"}])), "not JSON", "messages[1].tool_calls.arguments: not JSON (expecting value at column 1)"),
    ("arguments list", row(user("q"), assistant("", tool_calls=[CALL, {"name": "f", "arguments": [1]}])), "tool call", "messages[1].tool_calls[1].arguments: got a list of 1"),
    ("arguments twice", row(user("q"), assistant("", tool_calls=[{"name": "f", "arguments": '{"a":1,"a":2}'}])), "duplicate key", "key 'a' is given twice"),
    ("reasoning", row(user("q"), assistant("a", reasoning=3)), "not text", "messages[1].reasoning: got 3"),
    ("tools text", {**row(user("q"), assistant("a")), "tools": "none"}, "not JSON", "tools: not JSON"),
    ("tools number", {**row(user("q"), assistant("a")), "tools": 3}, "tools", "tools: got 3"),
    ("tools items", {**row(user("q"), assistant("a")), "tools": [1]}, "wrong type", "tools[0]: got 1"),
    ("tools bytes", {**row(user("q"), assistant("a")), "tools": [{"a": b"x"}]}, "wrong type", "cannot be written as JSON"),
    ("swapped", {"conversations": [{"from": "What?", "value": "human"}]}, "unknown role", "conversations[0].from: got 'What?'"),
    ("swapped says", {"conversations": [{"from": "What?", "value": "human"}]}, "unknown role", "looks swapped with the text beside it"),
    ("sharegpt null", {"conversations": [{"from": "human", "value": None}]}, "null content", "conversations[0].value is null"),
    ("sharegpt call", {"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{"}]}, "not JSON", "conversations[1].value: not JSON"),
    ("two systems", {"system": "s", "conversations": [{"from": "system", "value": "t"}, {"from": "gpt", "value": "a"}]}, "two system texts", "keep one"),
    ("prompt", {"prompt": 3, "completion": "a"}, "not text", "prompt: got 3"),
    ("completion", {"prompt": "q", "completion": None}, "null content", "completion is null"),
    ("completion empty", {"prompt": "q", "completion": ""}, "empty answer", "completion: the assistant's turn is empty"),
    ("completion asks", {"prompt": "q", "completion": [user("r")]}, "no assistant turn", "no assistant turn"),
    ("output", {"instruction": "i", "output": None}, "null content", "output is null"),
    ("output empty", {"instruction": "i", "output": ""}, "empty answer", "output: the assistant's turn is empty"),
    ("instruction", {"instruction": " ", "input": "", "output": "a"}, "empty prompt", "instruction: the user's turn is empty"),
    ("input", {"instruction": "i", "input": 3, "output": "a"}, "not text", "input: got 3"),
    ("half a mark", row(user("q"), assistant("a", train=0.5)), "training flag", "messages[1].train: got 0.5; must be true or 1 (the turn is trained), false or 0"),
    ("weight below", row(user("q"), assistant("a", weight=-0.5)), "training flag", "messages[1].weight: got -0.5; must be a number from 0 (the turn is not trained) to 1"),
    ("weight of another", row(user("q") | {"weight": 0.5}, assistant("a")), "training flag", "messages[0].weight: got 0.5 (role user); only assistant turns are trained"),
    ("calls differ", row(user("q"), assistant([{"type": "tool_call", "value": {"name": "f"}, "train": mark} for mark in (True, False)])), "training flag", "messages[1].content: its calls have several marks"),
    ("flag as text", row(user("q"), assistant("a", train="yes")), "training flag", "messages[1].train: got 'yes'; must be true"),
    ("trained user", row(user("q") | {"train": True}, assistant("a")), "training flag", "messages[0].train: got true (role user); only assistant turns are trained"),
    ("row's mark", {"prompt": "q", "completion": "a", "loss": 1.7}, "training flag", "loss: got 1.7; must be a number from 0 (the row is not trained) to 1, or true or false, or set columns"),
    ("part and turn", row(user("q"), assistant(parts("a", train=True), weight=0)), "training flag", "messages[1]: weight and the marks of its parts contradict each other"),
    ("user's part", row(user(parts("q", train=True)), assistant("a")), "training flag", "messages[0].content[0].train: only parts of assistant turns are trained"),
    ("picture in a turn", row(user("<image>q") | {"images": ["x.png"]}, assistant("a")), "part that is not text", "messages[0].images: got a list of 1"),
    ("picture in a part", row(user([{"type": "text", "text": "q", "image": "x.png"}]), assistant("a")), "part that is not text", "messages[0].content[0].image: got 'x.png'"),
    ("flags differ", row(user("q"), assistant("a", train=True, weight=0)), "training flag", "messages[1]: train and weight contradict each other"),
    ("nothing trained", row(user("q"), assistant("a", weight=0)), "nothing to learn", "messages: every assistant turn's own flag says not to train it"),
    ("sharegpt flag", {"conversations": [said("human", "q"), said("gpt", "a", loss=2)]}, "training flag", "conversations[1].loss: got 2"),
    ("history", {"instruction": "i", "output": "a", "history": [["q"]]}, "wrong type", "history[0]: got a list of 1"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "kind", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_rows(values: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(BadRow) as error:
        read(values)
    assert error.value.kind == kind and says in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_some_rows_lack() -> None:
    form = recognise([Row(1, {"prompt": "q", "completion": "a"})], None)
    assert form is not None
    with pytest.raises(BadRow, match=r"column completion is missing \(found prompt, answer\)"):
        form.convert({"prompt": "q", "answer": "a"})


@pytest.mark.parametrize("odd", ["\u2028", "\x1b[31m", "\n", "\x85"])
def test_a_reason_is_one_printable_line_whatever_a_row_holds(odd):
    text = str(BadRow("column missing", f"column messages is missing (found {odd}messages)"))
    assert text.isprintable() and text.splitlines() == [text] and "messages is missing" in text


def test_a_system_text_in_parts() -> None:
    """Anthropic's and Bedrock's."""
    row = {"messages": [user("q"), assistant("a")]}
    for parts in ([{"text": "s"}, {"text": "t"}], [{"type": "text", "text": "st"}]):
        assert [turn["content"] for turn in read(row | {"system": parts}).messages] == ["st", "q", "a"]
    with pytest.raises(BadRow, match=r"^system\[0\].*: got a part of type 'image'"):
        read(row | {"system": [{"type": "image"}]})
    assert [turn["content"] for turn in read(row | {"system": []}).messages] == ["q", "a"]
