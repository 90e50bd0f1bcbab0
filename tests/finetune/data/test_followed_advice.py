"""What a refusal of a file advises is followed, and the file is read."""

import gzip
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.plain_text import PlainText
from hybrid_ft.finetune.data.reading import conversations, judgements
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.load import load_recipe

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


def to(change: Callable[[Path], Path | None]) -> Callable[[dict[str, Any], re.Match[str]], dict[str, Any]]:
    """Changes the file, and reads it or what came of it."""
    return lambda source, match: source | {"path": str(change(Path(source["path"])) or source["path"])}


def unpacked(path: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall("unpacked")
    return Path("unpacked")


def edited(old: str, new: str) -> Callable[[dict[str, Any], re.Match[str]], dict[str, Any]]:
    def change(path: Path) -> None:
        path.write_text(path.read_text().replace(old, new, 1))

    return to(change)


def without(name: str) -> Callable[[dict[str, Any], re.Match[str]], dict[str, Any]]:
    return lambda source, match: {key: value for key, value in source.items() if key != name}


def zipped(**files: str) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name}.jsonl", text)
    return held.getvalue()


def saved(to: str = "d") -> None:
    """A data set as the datasets library saves it."""
    from datasets import Dataset

    Dataset.from_list([json.loads(ROW)]).save_to_disk(to)


def by_columns(source: dict[str, Any], match: re.Match[str]) -> dict[str, Any]:
    return source | {"columns": {"prompt": "prompt", "completion": match[1]}}


def no_format(source: dict[str, Any], _: Any) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name != "format"}


CASES: dict[str, tuple[Any, dict[str, Any], str, Any]] = {
    "a table": ({"r.jsonl": "prompt,completion\nq,a\n"}, {"path": "r.jsonl"}, r"name the file \.(csv)$", renamed),
    "a table by tabs": ({"r.csv": "prompt\tcompletion\nq\ta\n"}, {"path": "r.csv"}, r"name the file \.(tsv)", renamed),
    "sharegpt": ({"r.jsonl": SHAREGPT}, {"path": "r.jsonl", "format": "messages"}, "leave format out", no_format),
    "both": ({"r.jsonl": MESSAGES + BOTH + MESSAGES}, {"path": "r.jsonl"}, "", None),
    "splits": ({"d/test.jsonl": ROW, "d/validation.jsonl": ROW}, {"path": "d"}, r"choose one: split: (\w+)$", key("split")),
    "names": (
        {"d/README.md": CARD.format("x", "y"), "d/one.jsonl": ROW, "d/two.jsonl": ROW},
        {"path": "d"},
        r"choose one: name: (\w+)$",
        key("name"),
    ),
    "a description": (saved, {"path": "d/state.json"}, r"name the folder, (d)$", key("path")),
    "a description of what": (saved, {"path": "d/dataset_info.json"}, r"name the folder, (d)$", key("path")),
    "a name for a saved one": (saved, {"path": "d", "name": "x"}, r"no configurations; leave it out$", without("name")),
    "a folder of saved ones": (lambda: saved("d/inner"), {"path": "d"}, "", None),
    "a name for a folder": (
        {"d/train.jsonl": ROW},
        {"path": "d", "name": "x"},
        r"names no configurations; leave name out$",
        without("name"),
    ),
    "a wrong name": (
        {"d/README.md": CARD.format("x", "y"), "d/one.jsonl": ROW, "d/two.jsonl": ROW},
        {"path": "d", "name": "z"},
        r"must be one of (x), y$",
        key("name"),
    ),
    "a wrong split": ({"r.jsonl": ROW}, {"path": "r.jsonl", "split": "test"}, r"must be of train, such as (\S+)$", key("split")),
    "no part of a split": ({"r.jsonl": ROW}, {"path": "r.jsonl", "split": "train[x]"}, r"such as (\S+)$", key("split")),
    "two in an archive": (
        {"r.zip": zipped(a=ROW, b=ROW)},
        {"path": "r.zip"},
        r"must hold one: unpack it, and name the folder or a file in it$",
        to(unpacked),
    ),
    "packed without its name": (
        {"r.jsonl": gzip.compress(ROW.encode())},
        {"path": "r.jsonl"},
        r"is gzip data; name the file (r.jsonl.gz)$",
        lambda source, match: source | {"path": str(Path(source["path"]).rename(match[1]))},
    ),
    "an archive without its name": (
        {"r.jsonl": zipped(a=ROW)},
        {"path": "r.jsonl"},
        r"unpack it, or name the file (r.jsonl.zip)$",
        lambda source, match: source | {"path": str(Path(source["path"]).rename(match[1]))},
    ),
    "UTF-16": (
        {"r.jsonl": ROW.encode("utf-16")},
        {"path": "r.jsonl"},
        r"is UTF-16; save the file as UTF-8$",
        to(lambda path: path.write_text(path.read_text("utf-16")) and None),
    ),
    "Latin-1": (
        {"r.jsonl": ROW.replace('"a"', '"\xe9"').encode("latin-1")},
        {"path": "r.jsonl"},
        r"is not UTF-8; save the file as UTF-8$",
        to(lambda path: path.write_text(path.read_text("latin-1")) and None),
    ),
    "a column without a name": (
        {"r.csv": "prompt,,completion\nq,x,a\n"},
        {"path": "r.csv"},
        r"the first line names the columns, give it one$",
        edited(",,", ",more,"),
    ),
    "a column twice": (
        {"r.csv": "prompt,x,x,completion\nq,1,2,a\n"},
        {"path": "r.csv"},
        r"column 'x' is there twice; give each column its own name$",
        edited(",x,", ",y,"),
    ),
    "a number that is none": (
        {"r.jsonl": ROW.replace("}", ', "n": NaN}')},
        {"path": "r.jsonl"},
        r"NaN is not a JSON number; write (null) or leave the key out$",
        edited("NaN", "null"),
    ),
    "a key twice": (
        {"r.jsonl": ROW.replace("}", ', "prompt": "r"}')},
        {"path": "r.jsonl"},
        r"key 'prompt' is given twice in one object; keep one$",
        edited(', "prompt": "r"', ""),
    ),
    "labels for rows": (
        {"r.jsonl": ROW},
        {"path": "r.jsonl", "labels": {"1": True}},
        r"train on them with hybrid-ft kto, or leave the key out$",
        without("labels"),
    ),
    "all of no list": ({"r.jsonl": ROW}, {"path": "r.jsonl", "pairs": "all"}, r"only pairs have it, leave it out$", without("pairs")),
    "no value of only": (
        {"r.jsonl": ROW},
        {"path": "r.jsonl", "only": {"prompt": "r"}},
        r"\(the first: prompt is (q)\); name values that are there$",
        lambda source, match: source | {"only": {"prompt": match[1]}},
    ),
    "nothing left": (
        {"r.jsonl": ROW + ROW.replace('"q"', '"r"')},
        {"path": "r.jsonl", "without": {"completion": "a"}},
        r"have completion: a; name values of the rows to leave out$",
        lambda source, match: source | {"without": {"prompt": "r"}},
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
    "a truth for an answer": (
        {"r.jsonl": json.dumps({"prompt": "q", "completion": True}) + "\n"},
        {"path": "r.jsonl"},
        r"completion: got true; must be a string; map it in columns as \"(.*)\", in words",
        by_columns,
    ),
    "a text in a list": (
        {"r.jsonl": json.dumps({"prompt": "q", "completion": ["a"]}) + "\n"},
        {"path": "r.jsonl"},
        r"completion: got a list of 1 text; .*; map it in columns as \"(.*)\"$",
        by_columns,
    ),
    "texts of two in turn": (
        {"r.jsonl": json.dumps({"conversations": ["q", "a"]}) + "\n"},
        {"path": "r.jsonl"},
        r"the assistant's in turn, set columns: \{turns: (conversations)\}$",
        lambda source, match: source | {"columns": {"turns": match[1]}},
    ),
    "a role of another name": (
        {"r.jsonl": MESSAGES.replace("assistant", "bard")},
        {"path": "r.jsonl"},
        r"say what it means, such as roles: \{(bard: assistant)\}$",
        lambda source, match: source | {"roles": dict([match[1].split(": ")])},
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
    if callable(files):
        files()
        files = {}
    for path, text in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(text.encode() if isinstance(text, str) else text)
    if follow is not None:
        with pytest.raises((InputError, BadRow)) as error:
            read(source)
        match = re.search(advice, str(error.value))
        assert match, error.value
        source = follow(source, match)
    rows = read(source)
    assert rows and all(isinstance(row, PlainText) or len(row.messages) == 2 for row in rows)


def test_answers_that_were_to_be_streamed_are_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = [{"prompt": f"q{n}", "completion": "a", "label": n % 2 == 0} for n in range(9)]
    Path("r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    text = "model: {path: tiny}\nkto: {}\ndata: {sources: [{path: r.jsonl%s}]%s}\n"
    Path("r.yaml").write_text(text % ("", ", streaming: true"))
    with pytest.raises(
        InputError, match=r"kto reads its rows whole, .*; leave it out; split: 'train\[:\d+\]' of"
    ) as error:
        load_recipe("r.yaml", [])
    advised = re.search(r"split: 'train\[:\d+\]'", str(error.value))
    assert advised
    Path("r.yaml").write_text(text % (f", {advised[0].replace('100000', '4')}", ""))
    (source,) = load_recipe("r.yaml", []).data.sources
    assert len(list(judgements(source, SourceCounts("x")))) == 4


def test_labels_are_said_as_the_messages_advise(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    rated = [{"prompt": "q", "completion": text, "label": score} for text, score in (("a", 5), ("b", 1), ("c", 3))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rated))

    def reasons(**keys: Any) -> list[str]:
        rows = judgements(Source.model_validate({"path": str(path)} | keys), SourceCounts("x"))
        return [row.good if isinstance(row, Judgement) else str(row) for _, row in rows]

    unknown = re.search(r"say what values mean: labels: (\{.*\})$", str(reasons()[0]))
    assert unknown
    labels = yaml.safe_load(unknown[1])
    *good_and_bad, third = reasons(labels=labels)
    assert good_and_bad == [True, False] and str(third).endswith("; name it under labels")
    assert reasons(labels=labels | {3: False}) == [True, False, False]


def test_a_mapping_of_answers_without_a_label_gets_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"ask": "q", "say": "a", "fine": True}) + "\n")
    columns = {"prompt": "ask", "completion": "say"}
    with pytest.raises(InputError, match="must name label, the column that says whether an answer was good"):
        list(judgements(Source.model_validate({"path": str(path), "columns": columns}), SourceCounts("x")))
    wanted = Source.model_validate({"path": str(path), "columns": columns | {"label": "fine"}})
    ((_, made),) = judgements(wanted, SourceCounts("x"))
    assert isinstance(made, Judgement) and made.good
