"""What a refusal of a file advises is followed, and the file is read."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.reading import conversations
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source

ROW = json.dumps({"prompt": "q", "completion": "a"}) + "\n"
SHAREGPT = json.dumps({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}) + "\n"
MESSAGES = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}) + "\n"
BOTH = json.dumps({"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}) + "\n"
CARD = """---
configs:
- config_name: {}
  data_files: one.jsonl
- config_name: {}
  data_files: two.jsonl
---
"""


def renamed(source: dict[str, Any], match: re.Match[str]) -> dict[str, Any]:
    path = Path(source["path"])
    return source | {"path": str(path.rename(path.with_suffix(f".{match[1]}")))}


def key(name: str) -> Callable[[dict[str, Any], re.Match[str]], dict[str, Any]]:
    return lambda source, match: source | {name: match[1]}


def inner(source: dict[str, Any], match: re.Match[str]) -> dict[str, Any]:
    path = Path(source["path"])
    path.write_text(json.dumps(json.loads(path.read_text())[match[1]]))
    return source


def by_columns(source: dict[str, Any], match: re.Match[str]) -> dict[str, Any]:
    return source | {"columns": {"prompt": "prompt", "completion": match[1]}}


CASES: dict[str, tuple[dict[str, str], dict[str, Any], str, Any]] = {
    "a table": ({"r.jsonl": "prompt,completion\nq,a\n"}, {"path": "r.jsonl"}, r"name the file \.(csv)$", renamed),
    "a table by tabs": ({"r.csv": "prompt\tcompletion\nq\ta\n"}, {"path": "r.csv"}, r"name the file \.(tsv)", renamed),
    "sharegpt": ({"r.jsonl": SHAREGPT}, {"path": "r.jsonl", "format": "messages"}, r"set format: (\w+)", key("format")),
    "both": ({"r.jsonl": MESSAGES + BOTH + MESSAGES}, {"path": "r.jsonl"}, "", None),
    "splits": ({"d/test.jsonl": ROW, "d/validation.jsonl": ROW}, {"path": "d"}, r"choose one: split: (\w+)$", key("split")),
    "names": (
        {"d/README.md": CARD.format("x", "y"), "d/one.jsonl": ROW, "d/two.jsonl": ROW},
        {"path": "d"},
        r"choose one: name: (\w+)$",
        key("name"),
    ),
    "no such file": ({"train.jsonl": ROW}, {"path": "trian.jsonl"}, r"did you mean (\S+)\?$", key("path")),
    "rows in a list of a file": (
        {"r.json": json.dumps({"version": "1", "data": [json.loads(ROW)] * 2})},
        {"path": "r.json"},
        r"2 objects in '(\w+)'; write that list alone to a file",
        inner,
    ),
    "a number for an answer": (
        {"r.jsonl": json.dumps({"prompt": "q", "completion": 1}) + "\n"},
        {"path": "r.jsonl"},
        r"completion: got 1; must be a string; write it in quotes, or map it in columns as \"(.*)\"",
        by_columns,
    ),
    "a text among chats": ({"r.jsonl": '{"text": "a"}\n'}, {"path": "r.jsonl"}, r"set format: (\w+) to train every", key("format")),
}  # fmt: skip


def read(source: dict[str, Any]) -> list[Any]:
    rows = conversations(Source.model_validate(source), SourceCounts("x"), texts=False)
    made = []
    for _, row in rows:
        if isinstance(row, BadRow):
            raise row
        made.append(row)
    return made


@pytest.mark.parametrize("name", CASES)
def test_the_advice_is_followed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, source, advice, follow = CASES[name]
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    if follow is not None:
        with pytest.raises((InputError, BadRow)) as error:
            read(source)
        match = re.search(advice, str(error.value))
        assert match, error.value
        source = follow(source, match)
    rows = read(source)
    assert rows and all(isinstance(row, PlainText) or len(row.messages) == 2 for row in rows)
