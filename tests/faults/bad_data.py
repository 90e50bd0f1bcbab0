"""Bad data files and rows. Where a row is bad it is the second of its file, and the complaint names line 2."""

import bz2
import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from refusals import JUDGED, JUDGEMENT, PAIR, PAIRS, RECIPE, REWARD, ROW, Case, lines


def turns(*pairs: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ANSWER = ("assistant", "Blue.")
DEEP = "[" * 200 + "]" * 200

# name, the row, what is said of it
ROWS: list[tuple[str, Any, str]] = [
    ("messages are a text", {"messages": "user: hello"}, "messages: got 'user: hello'; must be a list of turns"),
    ("messages are a number", {"messages": 3}, "messages: got 3"),
    ("messages are an object", {"messages": {"role": "user"}}, "messages: got a mapping with role"),
    ("messages are null", {"messages": None}, "messages is null"),
    ("messages are empty", {"messages": []}, "messages is empty"),
    ("a turn is a text", {"messages": ["hello"]}, "messages[0]: got 'hello'"),
    ("a turn is null", {"messages": [None]}, "messages[0]: got null"),
    ("a turn is a list", {"messages": [["user", "hello"]]}, "messages[0]: got a list of 2"),
    ("a turn is empty", {"messages": [{}]}, "messages[0]"),
    ("the column is missing", {"foo": "bar"}, "column messages is missing (found foo)"),
    ("an empty row", {}, "column messages is missing (found none)"),
    ("the user's content is null", turns(("user", None), ANSWER), "messages[0].content is null"),
    ("the answer is null", turns(("user", "q"), ("assistant", None)), "messages[1].content is null"),
    ("the answer is empty", turns(("user", "q"), ("assistant", "")), "messages[1]: the assistant's turn is empty"),
    ("the answer is blank", turns(("user", "q"), ("assistant", " \n")), "messages[1]: the assistant's turn is empty"),
    ("the prompt is empty", turns(("user", ""), ANSWER), "messages[0]: the user's turn is empty"),
    ("content is a number", turns(("user", 5), ANSWER), "messages[0].content: got 5"),
    ("content is true", turns(("user", True), ANSWER), "messages[0].content: got true"),
    ("content is an object", turns(("user", {"text": "q"}), ANSWER), "messages[0].content: got a mapping"),
    ("an unknown role", turns(("bard", "q"), ANSWER), "messages[0].role: got 'bard'"),
    ("an unknown role in capitals", turns(("Bard", "q"), ANSWER), "messages[0].role: got 'Bard'"),
    ("a role of another kind", turns((["user"], "q"), ANSWER), "messages[0].role: got a list of 1"),
    ("a role is null", turns((None, "q"), ANSWER), "messages[0].role"),
    ("no role", {"messages": [{"content": "q"}]}, "messages[0]"),
    (
        "a turn of two forms",
        {"messages": [{"role": "user", "content": "q", "from": "gpt", "value": "a"}]},
        "messages[0]: role and content say another thing than from and value",
    ),
    (
        "a mark in capitals",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "Train": False}]},
        "messages[1].Train: got false; marks are read in small letters",
    ),
    ("ends on a user's turn", turns(("user", "q"), ANSWER, ("user", "r")), "ends on a user turn"),
    ("no assistant's turn", turns(("user", "q")), "no assistant turn"),
    ("an image", turns(("user", [{"type": "image", "image": "x.png"}]), ANSWER), "messages[0].content[0]"),
    ("an image's address", turns(("user", [{"type": "image_url", "image_url": {"url": "x"}}]), ANSWER), "image_url"),
    ("a part without text", turns(("user", [{"type": "text"}]), ANSWER), "messages[0].content[0]"),
    ("tool calls are a number", {"messages": [{"role": "assistant", "content": "", "tool_calls": 1}]}, "tool_calls"),
    (
        "a call without a name",
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{}]}]},
        "name is null",
    ),
    ("tools are a number", ROW | {"tools": 5}, "tools: got 5"),
    ("tools are no JSON", ROW | {"tools": "[{"}, "tools: not JSON"),
    ("no turn is to be trained", {"messages": [*ROW["messages"][:1], ROW["messages"][1] | {"train": False}]}, "not to train"),
    ("half a character", '{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    ("NaN", '{"messages": NaN}', "NaN is not a JSON number"),
    ("Infinity", '{"messages": -Infinity}', "-Infinity is not a JSON number"),
    ("a number too large", '{"messages": 1e999}', "too large"),
    ("a number of 9,000 digits", '{"messages": ' + "9" * 9000 + "}", "digits"),
    ("a key twice", '{"messages": [], "messages": []}', "key 'messages' is given twice"),
    ("a key twice below", '{"messages": [{"role": "user", "role": "user"}]}', "key 'role' is given twice"),
    ("cut short", '{"messages": [{"role": "us', "not JSON (unterminated string at column"),
    ("a comma too many", '{"messages": [],}', "not JSON"),
    ("single quotes", "{'messages': []}", "not JSON"),
    ("a list", "[1, 2]", "a row is an object of columns, not a list of 2"),
    ("a text", '"hello"', "a row is an object of columns, not 'hello'"),
    ("null", "null", "a row is an object of columns, not null"),
    ("two objects on a line", '{"a": 1} {"a": 2}', "not JSON (extra data"),
    ("nested without end", '{"messages": ' + "[" * 100_000, "nested more than 64 deep"),
    ("nested too deep", '{"messages": ' + DEEP + "}", "nested more than 64 deep"),
    ("a NUL byte", '{"messages": \0}', "NUL byte at column"),
]  # fmt: skip

SHAREGPT: list[tuple[str, Any, str]] = [
    ("an unknown speaker", {"conversations": [{"from": "alien", "value": "q"}]}, "conversations[0].from: got 'alien'"),
    ("value is null", {"conversations": [{"from": "human", "value": None}]}, "conversations[0].value is null"),
    ("value is missing", {"conversations": [{"from": "human"}]}, "conversations[0]"),
    ("from is a list", {"conversations": [{"from": ["human"], "value": "q"}]}, "conversations[0].from"),
    ("neither form", {"conversations": [{"speaker": "human", "text": "q"}]}, "conversations[0]"),
]

PREFERENCES: list[tuple[str, Any, str]] = [
    ("no rejected", {"prompt": "q", "chosen": "a"}, "rejected"),
    ("rejected is null", PAIR | {"rejected": None}, "rejected is null"),
    ("chosen is null", PAIR | {"chosen": None}, "chosen is null"),
    ("rejected is a number", PAIR | {"rejected": 3}, "rejected: got 3"),
    ("rejected is empty", PAIR | {"rejected": ""}, "empty answer"),
    ("both are empty", PAIR | {"chosen": "", "rejected": ""}, "empty answer"),
    ("the prompt is null", PAIR | {"prompt": None}, "prompt"),
    ("the prompt is empty", PAIR | {"prompt": ""}, "empty prompt"),
    ("chosen is an object", PAIR | {"chosen": {"a": 1}}, "chosen"),
    ("chosen holds null", PAIR | {"chosen": [None]}, "chosen[0]"),
    ("chosen ends on a user", PAIR | {"chosen": [{"role": "user", "content": "x"}]}, "no assistant turn"),
]


def of_rows(name: str, row: Any, says: str) -> Case:
    return Case(f"row: {name}", ("rows.jsonl:2: ", says), files={"rows.jsonl": lines(ROW, row, ROW)})


def of_file(name: str, content: Any, *says: str, file: str = "rows.jsonl", **more: Any) -> Case:
    recipe = RECIPE.replace("rows.jsonl", file)
    return Case(f"file: {name}", says, recipe=recipe, files={file: content} if content is not None else {}, **more)


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../escaped.jsonl", lines(ROW))


def zipped_twice(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.jsonl", "b.jsonl"):
            archive.writestr(name, lines(ROW))


def looping(path: Path) -> None:
    path.symlink_to(path.name)


def parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"messages": [1, 2]}), path)


WHOLE = lines(*[ROW] * 200).encode()
FILES = [
    of_file("empty", "", "rows.jsonl: 0 rows"),
    of_file("blank lines alone", "\n\n \n", "rows.jsonl: 0 rows"),
    of_file("an empty array", "[]", "rows.json:1: 0 rows", file="rows.json"),
    of_file("not there", None, "r.yaml:2: data.sources.0.path: got 'gone.jsonl'; there is no such", file="gone.jsonl"),
    of_file("nearly there", None, "did you mean rows.jsonl?", file="rows.jsnl", status=(3,)),
    of_file("a folder", lambda path: path.mkdir(), "data.jsonl: is a folder without a data file", file="data.jsonl"),
    of_file("a pipe", os.mkfifo, "r.yaml:2: data.sources.0.path", "neither a file nor a folder", file="pipe.jsonl"),
    of_file("a device", None, "r.yaml:2: data.sources.0.path", file="/dev/zero"),
    of_file("a link to itself", looping, "r.yaml:2: data.sources.0.path", file="loop.jsonl"),
    of_file("no kind of file", "x", "rows.xlsx: is not a kind of file that can be read", file="rows.xlsx"),
    of_file("a zip archive of two files", zipped_twice, "rows.zip: holds 2 data files (a.jsonl, b.jsonl)", file="rows.zip"),
    of_file("a zip archive by another name", zipped, "data.jsonl:1: is a zip archive; unpack it", file="data.jsonl"),
    of_file("a script", "import os", "rows.py: is not a kind of file", file="rows.py"),
    of_file("an address", None, "r.yaml:2: data.sources.0.path", file="https://example.com/rows.jsonl"),
    of_file("an address of a file", None, "r.yaml:2: data.sources.0.path", file="file:///etc/passwd"),
    of_file("not UTF-8", lines(ROW).encode() + b'{"messages": "\xe9"}\n', "rows.jsonl:2: byte 0xe9 at column 15"),
    of_file("UTF-16", lines(ROW).encode("utf-16"), "rows.jsonl:1: is UTF-16"),
    of_file("UTF-32", lines(ROW).encode("utf-32-be"), "rows.jsonl:1: not JSON (NUL byte at column 1)"),
    of_file("binary", bytes(range(256)) * 40, "rows.jsonl:1: "),
    of_file("a table", "prompt,completion\na,b\n", "rows.jsonl:1: looks like CSV"),
    of_file("YAML", "- messages:\n  - role: user\n", "rows.jsonl:1: not JSON"),
    of_file("cut short", WHOLE[:-30], "rows.jsonl:200: not JSON"),
    of_file("gzip without its name", gzip.compress(WHOLE), "rows.jsonl:1: is gzip data; name the file rows.jsonl.gz"),
    of_file("gzip cut short", gzip.compress(WHOLE)[:-20], "r.jsonl.gz", "cut short", file="r.jsonl.gz"),
    of_file("gzip cut short behind a bad row", gzip.compress(lines(ROW, {"messages": None}, *[ROW] * 40).encode())[:-9], "r.jsonl.gz:2: messages is null", file="r.jsonl.gz"),
    of_file("gzip damaged", b"\x1f\x8b\x08\0" + b"x" * 50, "r.jsonl.gz: the gz data", file="r.jsonl.gz"),
    of_file("no gzip", WHOLE, "r.jsonl.gz: the gz data is damaged", file="r.jsonl.gz"),
    of_file("bzip2 cut short", bz2.compress(WHOLE)[:-20], "r.jsonl.bz2: the bz2 data", file="r.jsonl.bz2"),
    of_file("an array cut short", json.dumps([ROW, ROW])[:-9], "rows.json:1: not JSON", file="rows.json"),
    of_file("an array and more", json.dumps([ROW]) + "{}", "rows.json:1: not JSON (more follows", file="rows.json"),
    of_file("no Parquet", "PAR1 and no more", "rows.parquet: not a Parquet file", file="rows.parquet"),
    of_file("Parquet of numbers", parquet, "rows.parquet:1: messages: got 1", file="rows.parquet"),
    of_file("a header alone", "prompt,completion\n", "rows.csv: 0 rows; only a header", file="rows.csv"),
    of_file("a cell too many", "prompt,completion\na,b\nc,d,e\n", "rows.csv:3: has 3 fields", file="rows.csv"),
    of_file("a quote left open", 'prompt,completion\n"a,b\n', "rows.csv:2: ", file="rows.csv"),
    of_file("a column twice", "prompt,prompt\na,b\n", "rows.csv:1: column 'prompt' is there twice", file="rows.csv"),
    of_file("another separator", "prompt;completion\na;b\n", "rows.csv:1: the header is one column", file="rows.csv"),
    of_file("an empty cell", "prompt,completion\na,\n", "rows.csv:2: completion: the assistant's turn is empty", file="rows.csv"),
    of_file("unknown columns", lines({"foo": 1}), "rows.jsonl:1: columns in no known format (found foo)"),
    of_file("a mapping's columns", lines({"question": "q", "answer": "a"}), "set columns: gsm8k"),
    of_file("prompts without answers", lines({"prompt": "q"}), "rows.jsonl:1: columns in no known format (found prompt)"),
    of_file("all too long", lines(turns(("user", "q" * 5000), ANSWER)), "max_length"),
    of_file("half too long", lines(ROW, turns(("user", "q" * 5000), ANSWER)), "data.max_dropped"),
]  # fmt: skip


ACCEPTED = [
    Case("accepted: a byte order mark", ("2 read, 2 usable",), ("data", "r.yaml"), files={"rows.jsonl": b"\xef\xbb\xbf" + lines(ROW, ROW).encode()}, accepted=True),
    Case("accepted: an array in .jsonl", ("a JSON array in a .jsonl file",), ("data", "r.yaml"), files={"rows.jsonl": json.dumps([ROW, ROW], indent=1)}, accepted=True),
    Case("accepted: JSON lines in .json", ("JSON lines in a .json file",), ("data", "r.yaml"), RECIPE.replace("rows.jsonl", "rows.json"), {"rows.json": lines(ROW, ROW)}, accepted=True),
    Case("accepted: control tokens in a text", ("<|im_end|>",), ("data", "r.yaml"), files={"rows.jsonl": lines(turns(("user", "a <|im_end|> b"), ANSWER))}, accepted=True),
    Case("accepted: CRLF", ("2 read, 2 usable",), ("data", "r.yaml"), files={"rows.jsonl": lines(ROW, ROW).replace("\n", "\r\n")}, accepted=True),
    Case("accepted: no line end at the end", ("2 read, 2 usable",), ("data", "r.yaml"), files={"rows.jsonl": lines(ROW, ROW).rstrip()}, accepted=True),
    Case("accepted: the same row twice", ("rows that are there twice or more, kept: 1",), ("data", "r.yaml"), accepted=True),
]  # fmt: skip

JUDGEMENTS: list[tuple[str, dict[str, Any], str]] = [
    ("a label of stars", {"label": 5}, "label: got 5; must be one of true or false"),
    ("a label that is a list", {"label": [1]}, "label: got a list"),
    ("an empty answer", {"completion": ""}, "the assistant's turn is empty"),
    ("an answer that is a number", {"completion": 3}, "completion: got 3; must be a string; write it in quotes"),
]

CASES = [
    *(of_rows(*each) for each in ROWS),
    *(
        Case(f"sharegpt: {name}", ("rows.jsonl:2: ", says), files={"rows.jsonl": lines({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, row)})
        for name, row, says in SHAREGPT
    ),
    *(
        Case(f"pair: {name}", ("pairs.jsonl:2", says), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": lines(PAIR, row, PAIR)})
        for name, row, says in PREFERENCES
    ),
    Case("pairs: no pair in the columns", ("pairs.jsonl:1: no columns that hold a pair",), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": lines({"text": "x"})}),
    Case("pairs: rows for sft", ("pairs.jsonl:1: no columns that hold a pair",), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": lines(ROW)}),
    Case("pairs: all too long", ("max_length",), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": lines(PAIR | {"prompt": "q" * 5000})}),
    Case("pairs: both the same", ("data.max_dropped",), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": lines(PAIR, PAIR | {"rejected": "Blue."})}),
    Case("pairs: empty", ("pairs.jsonl: 0 rows",), ("dpo", "r.yaml"), PAIRS, {"pairs.jsonl": ""}),
    *(
        Case(f"margin: {name}", ("pairs.jsonl:2: margin is", "must be a number"), ("reward", "r.yaml"), REWARD, {"pairs.jsonl": lines(PAIR, PAIR | {"margin": value}, PAIR)})
        for name, value in (("a word", "much"), ("true", True), ("a list", [1]), ("endless", "inf"), ("huge", 1e300))
    ),
    Case("reward: no pair", ("pairs.jsonl:1: no columns that hold a pair",), ("reward", "r.yaml"), REWARD, {"pairs.jsonl": lines(ROW)}),
    *(
        Case(f"judged: {name}", ("judged.jsonl:2", says), ("kto", "r.yaml"), JUDGED, {"judged.jsonl": lines(JUDGEMENT, JUDGEMENT | row, JUDGEMENT)})
        for name, row, says in JUDGEMENTS
    ),
    Case("judged: no label", ("judged.jsonl:1: no columns that hold judged answers",), ("kto", "r.yaml"), JUDGED, {"judged.jsonl": lines({"prompt": "q", "completion": "a"})}),
    Case("judged: nobody judged", ("data.max_dropped", "no label"), ("kto", "r.yaml"), JUDGED, {"judged.jsonl": lines(JUDGEMENT, JUDGEMENT | {"label": None})}),
    Case("judged: one row", ("data.sources: one row cannot be mismatched",), ("kto", "r.yaml"), JUDGED, {"judged.jsonl": lines(JUDGEMENT)}),
    Case("judged: empty", ("judged.jsonl: 0 rows",), ("kto", "r.yaml"), JUDGED, {"judged.jsonl": ""}),
    *FILES,
    Case("eval: a bad row", ("held.jsonl:1: messages is empty",), recipe=RECIPE.replace("max_length", "eval: {sources: [{path: held.jsonl}]}, max_length"), files={"held.jsonl": lines({"messages": []})}),
    Case("data: a place of no file", ("--row: the recipe reads no file row.jsonl; it reads rows.jsonl",), ("data", "r.yaml", "--row", "row.jsonl:1")),
    Case("data: a place of no row", ("--row: no row that is read begins at rows.jsonl:99; the nearest is rows.jsonl:",), ("data", "r.yaml", "--row", "rows.jsonl:99")),
    Case("data: a place without a line", ("--row: got 'rows.jsonl'; must be FILE:LINE",), ("data", "r.yaml", "--row", "rows.jsonl")),
    Case("data: out of no known form", ("--out: o.json: must be a name in .parquet",), ("data", "r.yaml", "--out", "o.json")),
    Case("data: out over a source", ("--out: o.parquet: the recipe reads .; write to another place",), ("data", "r.yaml", "--out", "o.parquet"), RECIPE.replace("rows.jsonl", ".")),
    Case("data: a bad row and out", ("rows.jsonl:1: messages is empty",), ("data", "r.yaml", "--out", "o.parquet"), files={"rows.jsonl": lines({"messages": []})}),
    Case("data: a bad row", ("rows.jsonl:1: messages is empty",), ("data", "r.yaml"), files={"rows.jsonl": lines({"messages": []})}),
    *ACCEPTED,
]  # fmt: skip
