"""Turns to messages, in either spelling: marks, parts, roles, and what is wrong with one, by field."""

from typing import Any

import pytest
from one_form import CALL, assistant, parts, read, said, user

from hybrid_ft.finetune.data.sources.rows import BadRow


def test_fields_that_are_left_out_are_named() -> None:
    turns = [{"role": "user", "content": "q", "score": 0.0}, {"role": "assistant", "content": "a", "name": "n"}]
    assert read({"messages": turns}).unused == {"messages[].score"}
    parts = [{"type": "text", "text": "q", "cache_control": {"type": "x"}, "index": None}]
    assert read({"messages": [user(parts), assistant("a")]}).unused == {"messages[].content[].cache_control"}
    shared = [{"from": "human", "value": "q", "id": 1}, {"from": "gpt", "value": "a"}]
    assert read({"conversations": shared}).unused == {"conversations[].id"}


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
    ("two forms in a turn", row(user("q"), assistant("a") | said("gpt", "b")), "wrong form", "messages[1]: role and content say another thing than from and value; keep one of the two"),
    ("two roles in a turn", row(user("q") | said("gpt", "q"), assistant("a")), "wrong form", "messages[0]: role and content say another thing"),
    ("a space that nobody types", row({"role": "user\u00a0", "content": "q"}), "unknown role", r"messages[0].role: got 'user\xa0'; must be one of"),
    ("no space at all", {"conversations": [said("gpt\u200b", "q")]}, "unknown role", r'such as roles: {"gpt\u200b": user}'),
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
    ("flag in capitals", row(user("q"), assistant("a", Train=False)), "training flag", "messages[1].Train: got false; marks are read in small letters: train"),
    ("part's flag in capitals", row(user("q"), assistant(parts("a", WEIGHT=0))), "training flag", "messages[1].content[0].WEIGHT: got 0; marks are read in small"),
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


def padded(turn: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(("role", "content", "from", "value", "tool_calls", "weight")) | turn


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("turns", [[said("human", "q"), assistant("a")], [user("q"), said("gpt", "a")]])
def test_each_turn_is_read_by_the_names_that_it_has(column: str, turns: list[dict[str, Any]]) -> None:
    for given in (
        turns,
        [padded(turn) for turn in turns],
        [user("q") | said("human", "q"), assistant("a") | said("bot", "a")],
    ):
        found = read({column: given})
        assert found.messages == [user("q"), assistant("a")]
    call = {"role": "assistant", "content": None, "from": None, "value": None, "tool_calls": [CALL]}
    found = read({column: [padded(said("human", "q")), call]})
    assert found.messages == [user("q"), assistant("", tool_calls=[CALL])] and found.unused == set()


def test_a_format_that_is_set_says_which_names_are_read() -> None:
    both = [user("q") | said("human", "r"), assistant("a") | said("gpt", "b")]
    assert read({"messages": both}, "messages").messages == [user("q"), assistant("a")]
    assert read({"conversations": both}, "sharegpt").messages == [user("r"), assistant("b")]
    with pytest.raises(BadRow, match=r"conversations\[0\] has role and content, not from and value; leave format out"):
        read({"conversations": [user("q"), assistant("a")]}, "sharegpt")


def test_parts_whose_type_a_table_left_null_and_those_of_the_responses_api() -> None:
    given = [{"type": None, "text": "q", "image_url": None}, {"type": "input_text", "text": "r"}]
    found = read({"messages": [user(given), assistant([{"type": "output_text", "text": "a", "train": True}])]})
    assert found.messages == [user("qr"), assistant("a")]
