"""What is a row and what is none, decided a second time: by the documented rules, with nothing of the reader's code.

``supervised`` and ``preference`` give what must come of one line of a file, and raise Wrong for a line that must be
refused, whatever the reason.
"""

import json
import re
from typing import Any, NamedTuple

from strict_tools import Wrong, a, calls_of, canonical, need, settled, strict, tools_of

SWITCHES = ("train", "training", "trainable")
WEIGHTS = ("weight", "loss", "loss_weight", "loss_scale")
UNCLEAR = ("mask", "masked", "masks", "loss_mask", "loss_masks", "ignore_loss", "train_detail")
MEDIA = [name + end for name in ("image", "video", "audio") for end in ("", "s")]
MEDIA += ["image_url", "image_urls", "image_path", "image_paths"]
CALLERS = ("function_call", "tool_call")
ROLES = {role: role for role in ("system", "user", "assistant", "tool", "environment")}
ROLES |= {"human": "user", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "bot", "ai", "model", *CALLERS), "assistant")
ROLES |= dict.fromkeys(("function", "observation", "function_response", "tool_response"), "tool")


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


def row_of(line: bytes) -> dict[str, Any]:
    try:
        return a(dict, strict(line.decode("utf-8").strip(" \t\r\n")))
    except UnicodeDecodeError:
        raise Wrong from None


def content_of(value: Any, role: str) -> tuple[str, list[str], list[Any]]:
    """Text, reasoning and calls: a text, or a list of typed parts."""
    if isinstance(value, str):
        return value, [], []
    texts, reasoning, calls = [], [], []
    for part in a(list, value):
        kind = a(dict, part).get("type")
        if kind in (None, "input_text", "output_text") and isinstance(part.get("text"), str):
            kind = "text"
        need(isinstance(kind, str))
        no_media(part)
        weight_of(part)
        given = next((part[key] for key in ("text", "value", "content", kind) if part.get(key) is not None), None)
        if kind == "text":
            texts.append(a(str, given))
        elif kind in ("reasoning", "thinking"):
            reasoning.append(a(str, given))
        else:
            need(kind == "tool_call" and role == "assistant")
            calls += calls_of(given)
    return "".join(texts), reasoning, calls


def weight_of(item: dict[str, Any], whole_row: bool = False) -> float:
    """The weight in the loss that a turn's or a row's own marks give it."""
    names = (*SWITCHES, *WEIGHTS, *UNCLEAR)
    need(whole_row or not any(key.lower() in names and key not in names and item[key] is not None for key in item))
    found = set()
    for key in (*SWITCHES, *WEIGHTS, *UNCLEAR):
        value = item.get(key)
        if whole_row and isinstance(value, str):
            text = value.strip().lower()
            value = {"true": True, "false": False, "": None, "null": None}.get(text, value)
            if isinstance(value, str):
                try:
                    value = float(value)
                except ValueError:
                    raise Wrong from None
        if value is not None:
            need(key not in UNCLEAR and isinstance(value, bool | int | float) and 0 <= value <= 1)
            need(key in WEIGHTS or value in (0, 1))
            found.add(float(value))
    need(len(found) < 2)
    return found.pop() if found else 1.0


def no_media(item: dict[str, Any]) -> None:
    need(all(item.get(key) in (None, "", [], {}) for key in MEDIA))


def names_of(item: dict[str, Any]) -> tuple[str, str]:
    """The keys of who speaks and of what is said: those of a whole pair; a null is nothing, and two pairs are wrong."""
    chat, other = ("role", "content"), ("from", "value")
    whole = [names for names in (chat, other) if all(item.get(name) is not None for name in names)]
    need(len(whole) < 2)
    begun = [names for names in (chat, other) if item.get(names[0]) is not None]
    return [*whole, *begun, chat][0]


def chat_turn(item: Any) -> Turn:
    names = names_of(a(dict, item))
    said = a(str, item.get(names[0])).strip(" \t\r\n").lower()
    role, given = ROLES.get(said), item.get(names[1])
    need(role)
    no_media(item)
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
    if said in CALLERS:
        thought = re.fullmatch(r"(?s)\s*<think>(.*?)</think>(.*)", given) if isinstance(given, str) else None
        calls = calls_of(thought[2] if thought else given)
        more |= {"reasoning_content": thought[1].strip("\n")} if thought else {}
    elif given is not None:
        text, reasoning, inner = content_of(given, role)
        calls = tuple(inner) or calls
        more |= {"reasoning_content": "".join(reasoning)} if reasoning else {}
    else:
        need(calls or more.get("function_calls"))
    need(role == "assistant" or not (calls or more.get("function_calls")))
    weight = weight_of(item)
    marked = any(item.get(key) for key in (*SWITCHES, *WEIGHTS))
    need(role == "assistant" or not marked)
    return Turn(role, text, calls, tuple(sorted(more.items())), role != "assistant" or weight > 0)


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
    if turns and turns[0] == Turn("system", a(str, system)):
        return turns
    need(all(turn.role != "system" for turn in turns))
    return [Turn("system", a(str, system)), *turns]


def is_message(item: Any) -> bool:
    if not isinstance(item, dict):
        return False
    if isinstance(item.get("role"), str):
        return any(item.get(key) is not None for key in ("content", "tool_calls", "function_call", "function_calls"))
    return isinstance(item.get("from"), str) and "value" in item


def unpacked(row: dict[str, Any]) -> dict[str, Any]:
    """The row with lists of messages in the place of the JSON text, or texts of one each, that hold them."""
    found = {}
    for name, value in row.items():
        always = name in ("messages", "conversations", "history")
        texts = ("prompt", "question", "instruction", "query", "completion", "output", "response", "chosen", "rejected")
        if not always and name not in (*texts, "output_1", "output_2"):
            continue
        if isinstance(value, str) and value.lstrip()[:1] == "[":
            made = parsed(value)
            if isinstance(made, list) and (always or (made and all(map(is_message, made)))):
                found[name] = strict(value)
        texts_of = value if isinstance(value, list) and all(isinstance(one, str) for one in value) else []
        made = [parsed(one) for one in texts_of]
        if made and all(map(is_message, made)) and has_roles(made):
            found[name] = [strict(one) for one in texts_of]
    return row | found


def has_roles(items: list[dict[str, Any]]) -> bool:
    """Whether objects begin as messages do, or one has a role that is known."""
    begins = next(iter(items[0])) in ("role", "from", "content", "value")
    return begins or any(str(item[names_of(item)[0]]).lower() in ROLES for item in items)


def parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def instructed(row: dict[str, Any], column: str = "instruction") -> list[Turn]:
    """Earlier turns and a question."""
    earlier, turns = row.get("history"), []
    if isinstance(earlier, list) and earlier and all(isinstance(one, dict) for one in earlier):
        turns = [chat_turn(one) for one in earlier]
        earlier = None
    for one in a(list, earlier) if earlier is not None else []:
        need(isinstance(one, list) and len(one) == 2)
        turns += [Turn("user", a(str, one[0])), Turn("assistant", a(str, one[1]))]
    question = a(str, row.get(column))
    about = [row[name] for name in ("input",) if row.get(name) is not None]
    about += [row[name] for name in ("context",) if isinstance(row.get(name), str)]
    parts = [part for part in (question, *(a(str, part) for part in about)) if part.strip()]
    return [*turns, Turn("user", "\n\n".join(parts) or question)]


def whole_row(row: dict[str, Any]) -> float:
    """What counts of a row beside its turns."""
    no_media(row)
    weight = weight_of(row, whole_row=True)
    need(weight > 0)
    return weight


def supervised(line: bytes, form: str) -> Judged:
    row = unpacked(row_of(line))
    asked, answer = {"alpaca": ("instruction", "output")}.get(form, ("prompt", "completion"))
    if form in ("messages", "sharegpt"):
        column = "messages" if form == "messages" else "conversations"
        turns = with_system([chat_turn(item) for item in a(list, row.get(column))], row.get("system"))
    else:
        before = several(row[asked]) if isinstance(row.get(asked), list | dict) else instructed(row, asked)
        turns = with_system(before, row.get("system"))
        value = row.get(answer)
        turns = turns + (several(value) if isinstance(value, list | dict) else [Turn("assistant", a(str, value))])
    whole_row(row)
    need(any(turn.role == "assistant" and turn.trained for turn in turns))
    tools = tools_of(row)
    return Judged(tuple(settled(ends_well(turns), tools)), canonical(tools))


def is_transcript(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip("\n").startswith("Human:") and "\n\nAssistant:" in value


def transcript(text: str) -> list[Turn]:
    parts = re.split(r"\n\n(Human|Assistant):", "\n\n" + text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Turn(roles[who], said.removeprefix(" ")) for who, said in zip(parts[::2], parts[1::2], strict=True)]


def several(value: Any) -> list[Turn]:
    items = [value] if isinstance(value, dict) else a(list, value)
    return [chat_turn(item) for item in items]


def side_of(value: Any) -> list[Turn]:
    need(value not in (None, []))
    if isinstance(value, str):
        return transcript(value) if is_transcript(value) else [Turn("assistant", value)]
    turns = several(value)
    last = value if isinstance(value, dict) else value[-1]
    need(not turns or turns[-1].role != "assistant" or weight_of(last) == 1)
    return turns


def asked(row: dict[str, Any], column: str) -> list[Turn]:
    """What the answers of a row answer."""
    value = row.get(column)
    need(value is not None)
    if isinstance(value, list | dict):
        turns = several(value)
        need(not turns or turns[-1].role != "assistant")
        return turns
    return instructed(row, column)


def preference(line: bytes, form: str) -> Judged:
    """``form``: the column of the prompt, ``outputs`` beside one named prompt, or nothing."""
    row = unpacked(row_of(line))
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
    alone = [side[0].role == "assistant" for side in sides]
    if any(alone):
        before = asked(row, form) if form else [] if all(alone) else sides[alone.index(False)][:-1]
        sides = [before + side if side[0].role == "assistant" else side for side in sides]
    system = row.get("system")
    need(system is None or isinstance(system, str))
    sides = [with_system(side, system) for side in sides]
    need(whole_row(row) == 1)
    tools = tools_of(row)
    sides = [[turn._replace(trained=True) for turn in settled(side, tools)] for side in sides]
    chosen, rejected = map(ends_well, sides)
    need(len(chosen) > 1 and chosen[:-1] == rejected[:-1] and chosen[-1] != rejected[-1])
    return Judged((*chosen, rejected[-1]), canonical(tools))
