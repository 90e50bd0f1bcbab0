"""Data files of which a known half of the rows was spoiled: values, text or bytes."""

import json
import re
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {"x": [1, "é"]}}}
CHAT = {
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "r", "tool_call_id": "c"},
        {"role": "assistant", "content": "a §", "reasoning": "t"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "observation", "value": "r"},
        {"from": "gpt", "value": "a § <|im_end|>"},
    ],
    "tools": '[{"name": "f"}]',
    "system": "s",
}
ALPACA = {"instruction": "i", "input": "x", "output": "a §", "history": [["q", "r"]], "system": None}
COMPLETION = {"prompt": "q", "completion": [{"role": "assistant", "content": "a §"}], "tools": []}
ROWS: list[dict[str, Any]] = [CHAT, SHAREGPT, ALPACA, COMPLETION]
"""§ gives way to a row's number where rows have to be told apart."""

ASKED = [{"role": "user", "content": "q"}]
CHOSEN, REJECTED = {"role": "assistant", "content": "a §"}, {"role": "assistant", "content": "b §"}
SUPERVISED: dict[str, list[dict[str, Any]]] = {
    "messages": [CHAT, {"messages": [*ASKED, CHOSEN | {"train": True}, *ASKED, REJECTED | {"weight": 0}, *ASKED, CHOSEN]}],
    "sharegpt": [SHAREGPT, {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a §"}]}],
    "alpaca": [ALPACA, {"instruction": "i", "output": "a §"}],
    "prompt-completion": [COMPLETION, {"prompt": ASKED, "completion": "a §"}],
}  # fmt: skip
PREFERENCES: dict[str, list[dict[str, Any]]] = {
    "prompt": [
        {"prompt": "q", "chosen": "a §", "rejected": "b §"},
        {"prompt": ASKED, "chosen": [CHOSEN], "rejected": REJECTED, "system": "s"},
        {"prompt": "q", "chosen": CHOSEN | {"tool_calls": [CALL]}, "rejected": "b §", "tools": CHAT["tools"]},
    ],
    "": [
        {"chosen": [*ASKED, CHOSEN], "rejected": [*ASKED, REJECTED]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a §", "rejected": "\n\nHuman: q\n\nAssistant: b §"},
    ],
    "instruction": [{"instruction": "i", "input": "x", "history": [["q", "r"]], "chosen": "a §", "rejected": "b §"}],
    "outputs": [{"prompt": "q", "output_1": "a §", "output_2": "b §", "preference": best} for best in (1, "output_2")],
}

VALUES = [
    None,
    True,
    0,
    -1.5,
    1e308,
    "",
    " ",
    "<|im_end|>",
    "\u2028",
    "\0",
    "{{x}}",
    [],
    [[]],
    {},
    {"a": None},
    "[]",
    "{",
]
VALUES += [{"\x1b[31m": 1, "\u2028": []}, 10**40, "\u202e\x1b[2J", "user", "assistant", "gpt", "tool", "system", "null", [None], 1, False, "Human: x"]  # fmt: skip
ODD = st.sampled_from(VALUES)
ACTIONS = ["set", "list", "object", "drop", "text"]
# what a row may have beside its columns without being of another form, and a turn beside its own
COLUMNS = ["note", "", "\u2028", "tools", "system", "weight", "train", "loss", "images"]
FIELDS = [
    "role",
    "from",
    "value",
    "content",
    "train",
    "weight",
    "loss",
    "trainable",
    "loss_scale",
    "mask",
    "image",
    "name",
    "reasoning",
    "function_calls",
    "\x1b",
]
TOKENS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e400",
    "0123",
    "+1",
    "True",
    "'x'",
    "undefined",
    "",
    "1.",
    ".5",
    "-",
]
TOKENS += ["9" * 5000, '"\\ud800"', '"\\udc00\\ud83d"', '"\\ud83d\\ude00"', '"\\u12"', '"\\x"', '"a\tb"', '"\0"', "-0"]
TOKENS += ['"a\u2028b"', '"\\u2028"', "[" * 70 + "]" * 70, "[" * 100_000, '{"a": ' * 70 + "1" + "}" * 70, "1 /* a */"]
TOKENS += ["[" * 20 + "]" * 20, '"a"b"', "[1,]", '{"a": 1, "a": 1}', '{"a"}', '{1: 2}', '" "', '"\\u0000"', '"\\ufeff"']  # fmt: skip
PIECES = [
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\xef\xbb\xbf",
    b"\0",
    b"\r",
    b"\n",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
]
PIECES += [b"\xe2\x80\xae", b"\x0c", b"\x1b[31m", b"\xf4\x90\x80\x80", b"{", b"}", b'"', b"\\", b",", b" ", b"[", b"null", b"{}"]  # fmt: skip


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in paths_in(item, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], odd: Any, action: str) -> Any:
    """``value`` with what lies at ``path`` replaced, left out, doubled or put one level deeper."""
    if not path:
        return {"set": odd, "list": [value], "object": {"x": value}, "drop": None, "text": json.dumps(value)}[action]
    copy = value.copy()
    if action == "drop" and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = replaced(value[path[0]], path[1:], odd, action)
    return copy


@st.composite
def mutated(draw: st.DrawFn, row: Any) -> Any:
    """A row with one to three of its values changed."""
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths_in(row)))
        row = replaced(row, path, draw(ODD), draw(st.sampled_from(ACTIONS)))
        if not isinstance(row, dict):
            break
    return row


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


@st.composite
def extended(draw: st.DrawFn, row: dict[str, Any]) -> Any:
    """A row with a field more in one of its objects."""
    path = draw(st.sampled_from([path for path in paths_in(row) if isinstance(at(row, path), dict)]))
    inner = at(row, path) | {draw(st.sampled_from(FIELDS if path else COLUMNS)): draw(ODD)}
    return replaced(row, path, inner, "set")


@st.composite
def retyped(draw: st.DrawFn, row: dict[str, Any]) -> bytes:
    """A line with one value in a spelling that is no JSON, or hardly, or with a key given twice."""
    text = json.dumps(row, ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 3)) == 0:
        start = draw(st.sampled_from([found.end() for found in re.finditer('{(?=")', text)]))
        key = text[start : text.index(":", start)]
        return f"{text[:start]}{key}: {draw(st.sampled_from(['0', 'null', '[]']))}, {text[start:]}".encode()
    start, end = draw(st.sampled_from([found.span() for found in re.finditer(r'"(?:[^"\\]|\\.)*"(?=[,}\]])', text)]))
    return (text[:start] + draw(st.sampled_from(TOKENS)) + text[end:]).encode()


@st.composite
def damaged(draw: st.DrawFn, row: dict[str, Any]) -> bytes:
    """A line cut off, with bytes lost, put in or turned over."""
    raw = bytearray(json.dumps(row, ensure_ascii=False).encode())
    for _ in range(draw(st.integers(1, 2))):
        where, how = draw(st.integers(0, max(0, len(raw) - 1))), draw(st.integers(0, 4))
        if how == 0:
            del raw[where:]
        elif how == 1:
            del raw[where : where + draw(st.integers(1, 20))]
        elif how == 2 and raw:
            raw[where] ^= 1 << draw(st.integers(0, 7))
        else:
            place = draw(st.sampled_from([0, where, len(raw)]))
            raw[place:place] = draw(st.sampled_from(PIECES))
    return bytes(raw)


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    return json.loads(json.dumps(row).replace("\\u00a7", f"#{number}"))


def line(row: Any) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def spoiled(row: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """A line made of a row, never the row's own line."""
    ways = [mutated(row).map(line), mutated(row).map(line), extended(row).map(line), retyped(row), damaged(row)]
    return st.one_of(*ways).map(lambda raw: raw if raw.strip() != line(row) else raw.strip()[:-1])


@dataclass
class File:
    """``whole``: the rows that were left as they are, by number; in its text each holds # and that number."""

    form: str
    content: bytes
    whole: list[int]
    spoiled: int


@st.composite
def files(draw: st.DrawFn, form: str, kinds: list[dict[str, Any]], spoil: int) -> File:
    """A whole row of every kind, then ``spoil`` times a whole and a spoiled one in either order."""
    rows = [numbered(row, number) for number, row in enumerate(kinds)]
    lines, whole = [line(row) for row in rows], list(range(len(rows)))
    for _ in range(spoil):
        number = len(whole)
        whole.append(number)
        bad = draw(spoiled(numbered(draw(st.sampled_from(kinds)), 10_000 + number)))
        good = line(numbered(kinds[number % len(kinds)], number))
        lines += [bad, good] if draw(st.booleans()) else [good, bad]
        lines += draw(st.sampled_from([[], [], [], [b""], [b" \t"]]))
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    start = draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\n\n", b"\xef\xbb\xbf \r\n"]))
    return File(form, start + end.join(lines) + draw(st.sampled_from([b"", end])), whole, spoil)
