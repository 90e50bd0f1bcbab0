"""What is a row and what is none, decided a second time: by the documented rules, with nothing of the reader's code.

``supervised`` and ``preference`` give what must come of one line of a file, and raise Wrong for a line that must be
refused, whatever the reason.
"""

import json
import math
import re
from typing import Any, NamedTuple

MAX_DEPTH = 64
FLAGS = ("train", "weight", "loss", "loss_weight")
ROLES = {role: role for role in ("system", "user", "assistant", "tool", "environment")} | {"function": "tool"}
CALLERS = ("function_call", "tool_call")
SPEAKERS = ROLES | {"human": "user"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "bot", "model", *CALLERS), "assistant")
SPEAKERS |= dict.fromkeys(("observation", "function_response", "tool_response"), "tool")


class Wrong(Exception):
    pass


class Turn(NamedTuple):
    """``calls``: name, arguments as JSON, id. ``more``: what else a template may print, by name."""

    role: str
    text: str
    calls: tuple[tuple[str, str, Any], ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    trained: bool = True


class Judged(NamedTuple):
    """The turns in their order; a pair's are the prompt's, the chosen and the rejected answer."""

    turns: tuple[Turn, ...]
    tools: str


def of_messages(messages: list[dict[str, Any]], tools: Any, untrained: Any = ()) -> Judged:
    """What the reader made, in the judge's terms."""
    turns = []
    for index, message in enumerate(messages):
        calls = [(call["function"], call.get("id")) for call in message.get("tool_calls", [])]
        made = tuple((function["name"], canonical(function["arguments"]), name) for function, name in calls)
        more = {key: value for key, value in message.items() if key not in ("role", "content", "tool_calls")}
        turn = Turn(message["role"], message["content"], made, tuple(sorted(more.items())), index not in untrained)
        turns.append(turn)
    return Judged(tuple(turns), canonical(tools))


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def need(condition: object) -> None:
    if not condition:
        raise Wrong


def a(kind: type, value: Any) -> Any:
    need(isinstance(value, kind))
    return value


def strict(text: str) -> Any:
    """Standard JSON: no key twice, no NaN or infinity, no half characters, MAX_DEPTH."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        need(len(dict(pairs)) == len(pairs))
        return dict(pairs)

    def finite(number: str) -> float:
        need(number.lstrip("-")[:1].isdigit() and math.isfinite(float(number)))
        return float(number)

    level = deepest = 0
    for bracket in re.findall(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])', text):
        level += bool(bracket[0]) - bool(bracket[1])
        deepest = max(deepest, level)
    need(deepest <= MAX_DEPTH)
    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=finite, parse_float=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Wrong from None
    return value


def row_of(line: bytes) -> dict[str, Any]:
    try:
        return a(dict, strict(line.decode("utf-8").strip(" \t\r\n")))
    except UnicodeDecodeError:
        raise Wrong from None


def calls_of(value: Any) -> tuple[tuple[str, str, Any], ...]:
    """Calls as objects, as JSON text, or a list of either."""
    value = strict(value) if isinstance(value, str) else value
    items = value if isinstance(value, list) else [value]
    need(items)
    calls = []
    for item in items:
        call = a(dict, strict(item) if isinstance(item, str) else item)
        function = call["function"] if isinstance(call.get("function"), dict) else call
        need(a(str, function.get("name")).strip())
        given = function["arguments"] if "arguments" in function else function.get("parameters")
        if isinstance(given, str):
            given = strict(given) if given.strip() else {}
        name = call.get("id") if isinstance(call.get("id"), str) else None
        calls.append((function["name"], canonical(a(dict, {} if given is None else given)), name))
    return tuple(calls)


def content_of(value: Any, role: str) -> tuple[str, list[str], list[Any]]:
    """Text, reasoning and calls: a text, or a list of typed parts."""
    if isinstance(value, str):
        return value, [], []
    texts, reasoning, calls = [], [], []
    for part in a(list, value):
        kind = a(dict, part).get("type")
        need(isinstance(kind, str))
        given = next((part[key] for key in ("text", "value", "content", kind) if part.get(key) is not None), None)
        if kind == "text":
            texts.append(a(str, given))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(a(str, given))
        else:
            need(kind == "tool_call" and role == "assistant")
            calls += calls_of(given)
    return "".join(texts), reasoning, calls


def is_trained(item: dict[str, Any], role: str) -> bool:
    flags = [item[key] for key in FLAGS if item.get(key) is not None]
    need(all(isinstance(flag, bool | int | float) and flag in (0, 1) for flag in flags))
    need(role == "assistant" or not any(flags))
    need(len({bool(flag) for flag in flags}) < 2)
    return role != "assistant" or all(flags)


def chat_turn(item: Any, flags: bool) -> Turn:
    role = ROLES.get(a(str, a(dict, item).get("role")))
    need(role)
    more = {}
    for key in ("function_calls", "functions", "name", "tool_call_id"):
        if item.get(key) is not None:
            more[key] = a(str, item[key])
    thoughts = [item[key] for key in ("reasoning_content", "reasoning", "thinking") if item.get(key) is not None]
    if thoughts:
        more["reasoning_content"] = a(str, thoughts[0])
    calls: Any = ()
    if item.get("tool_calls") not in (None, []):
        calls = calls_of(item["tool_calls"])
    elif item.get("function_call") is not None:
        calls = calls_of(item["function_call"])
    text = ""
    if item.get("content") is not None:
        text, reasoning, inner = content_of(item["content"], role)
        calls = tuple(inner) or calls
        more |= {"reasoning_content": "".join(reasoning)} if reasoning else {}
    else:
        need(calls or more.get("function_calls"))
    need(role == "assistant" or not (calls or more.get("function_calls")))
    return Turn(role, text, calls, tuple(sorted(more.items())), not flags or is_trained(item, role))


def sharegpt_turn(item: Any, flags: bool) -> Turn:
    speaker = a(str, a(dict, item).get("from"))
    role = SPEAKERS.get(speaker)
    need(role)
    keep = not flags or is_trained(item, role)
    if speaker in CALLERS:
        return Turn(role, "", calls_of(item.get("value")), (), keep)
    text, reasoning, calls = content_of(item.get("value"), role)
    more = (("reasoning_content", "".join(reasoning)),) if reasoning else ()
    return Turn(role, text, tuple(calls), more, keep)


def tools_of(row: dict[str, Any]) -> str:
    tools = row.get("tools")
    if isinstance(tools, str):
        tools = strict(tools) if tools.strip() else None
    if tools is None or tools == []:
        return canonical(None)
    return canonical([a(dict, strict(tool) if isinstance(tool, str) else tool) for tool in a(list, tools)])


def ends_well(turns: list[Turn]) -> list[Turn]:
    """A conversation: it ends on the assistant's turn, and no turn of the user's or the assistant's is blank."""
    need(turns and turns[-1].role == "assistant")
    for turn in turns:
        called = turn.calls or dict(turn.more).get("function_calls")
        need(turn.role not in ("user", "assistant") or called or turn.text.strip())
    return turns


def with_system(turns: list[Turn], system: Any) -> list[Turn]:
    if system in (None, ""):
        return turns
    need(all(turn.role != "system" for turn in turns))
    return [Turn("system", a(str, system)), *turns]


def instructed(row: dict[str, Any]) -> list[Turn]:
    """Alpaca's earlier turns and its question."""
    turns = []
    for earlier in a(list, row["history"]) if row.get("history") is not None else []:
        need(isinstance(earlier, list) and len(earlier) == 2)
        turns += [Turn("user", a(str, earlier[0])), Turn("assistant", a(str, earlier[1]))]
    parts = [a(str, row.get("instruction")), "" if row.get("input") is None else a(str, row["input"])]
    if not parts[1].strip():
        return [*turns, Turn("user", parts[0])]
    return [*turns, Turn("user", "\n\n".join(part for part in parts if part.strip()))]


def supervised(line: bytes, form: str) -> Judged:
    row = row_of(line)
    if form == "messages":
        turns = [chat_turn(item, True) for item in a(list, row.get("messages"))]
    elif form == "sharegpt":
        turns = [sharegpt_turn(item, True) for item in a(list, row.get("conversations"))]
        turns = with_system(turns, row.get("system"))
    elif form == "alpaca":
        turns = [*with_system(instructed(row), row.get("system")), Turn("assistant", a(str, row.get("output")))]
    else:
        turns = []
        for column, role in (("prompt", "user"), ("completion", "assistant")):
            value = row.get(column)
            whole = isinstance(value, list)
            turns += [chat_turn(item, True) for item in value] if whole else [Turn(role, a(str, value))]
    need(any(turn.role == "assistant" and turn.trained for turn in turns))
    return Judged(tuple(ends_well(turns)), tools_of(row))


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def transcript(text: str) -> list[Turn]:
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Turn(roles[who], said.removeprefix(" ")) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def several(value: Any) -> list[Turn]:
    items = [value] if isinstance(value, dict) else a(list, value)
    other = bool(items) and "from" in a(dict, items[0]) and "role" not in items[0]
    return [(sharegpt_turn if other else chat_turn)(item, False) for item in items]


def side_of(value: Any) -> list[Turn]:
    need(value not in (None, []))
    if isinstance(value, str):
        return transcript(value) if is_transcript(value) else [Turn("assistant", value)]
    return several(value)


def asked(row: dict[str, Any], column: str) -> list[Turn]:
    """What the answers of a row answer."""
    value = row.get(column)
    need(value is not None)
    if isinstance(value, list | dict):
        turns = several(value)
        need(not turns or turns[-1].role != "assistant")
        return turns
    if column == "instruction":
        return instructed(row | {"history": row.get("history") or None})
    return [Turn("user", a(str, value))]


def preference(line: bytes, form: str) -> Judged:
    """``form``: the column of the prompt, ``outputs`` beside one named prompt, or nothing."""
    row = row_of(line)
    columns = ["chosen", "rejected"]
    if form == "outputs":
        best = row.get("preference")
        need(isinstance(best, str | int | float) and not isinstance(best, bool))
        columns = ["output_1", "output_2"]
        text = str(best).strip().lower()
        need(text in ("1", "1.0", "output_1", "2", "2.0", "output_2"))
        columns = columns if text in ("1", "1.0", "output_1") else columns[::-1]
        form = "prompt"
    sides = [side_of(row.get(column)) for column in columns]
    if any(side[0].role == "assistant" for side in sides):
        before = asked(row, form) if form else []
        sides = [before + side if side[0].role == "assistant" else side for side in sides]
    system = row.get("system")
    need(system is None or isinstance(system, str))
    sides = [side if side[0] == Turn("system", system or "") else with_system(side, system) for side in sides]
    tools = tools_of(row)
    chosen, rejected = map(ends_well, sides)
    need(len(chosen) > 1 and chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1])
    return Judged((*chosen, rejected[-1]), tools)
