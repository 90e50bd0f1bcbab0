"""One row shown whole: the very tokens that are trained on, or why it is not; and places that are wrong."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data import one_row
from hybrid_ft.finetune.data.one_row import find_row
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.report.whole_row import WholeRow, draw_row
from hybrid_ft.finetune.recipe.schema import Recipe

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "five", "weight": 0.5}]
SUPERVISED = [
    {"messages": TURNS},
    {"messages": [*TURNS, {"role": "user", "content": "no"}, {"role": "assistant", "content": "4"}]},
    {"messages": [TURNS[0], {"role": "assistant", "content": None}]},
    {"messages": [TURNS[0], {"role": "assistant", "content": "fox " * 100}]},
    {"messages": [TURNS[0] | {"content": "a <|im_end|>\tb"}, {"role": "assistant", "content": "c"}]},
]
PAIRS = [
    {"prompt": "p?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]},
    {"prompt": "q?", "responses": ["a", "b"], "scores": [1, 1]},
    {"prompt": "r?", "responses": ["a", "b" * 200], "scores": [2, 1]},
]
JUDGED = [{"prompt": f"q{n}?", "completion": "a" * (150 * n + 1), "label": n != 1} for n in range(3)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(rows: list[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def recipe_of(*sources: Any, kind: str = "sft", **data: Any) -> Recipe:
    data = {"on_bad_row": "skip", "max_dropped": 0.9, "max_length": 64} | data
    stage = {} if kind == "sft" else {kind: {}}
    return Recipe.model_validate({"model": {"path": "tiny"}, "data": {"sources": list(sources)} | data} | stage)


def columns_of(row: WholeRow) -> dict[str, list[int]]:
    return {part.heading.split(",")[0]: [token.id for token in part.tokens] for part in row.parts}


CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "supervised": ("sft", lines(SUPERVISED), {}, {}),
    "supervised, cut": ("sft", lines(SUPERVISED), {}, {"on_long_row": "cut"}),
    "pairs": ("dpo", lines(PAIRS), {"pairs": "all"}, {}),
    "judged": ("kto", lines(JUDGED), {}, {}),
    "judged pairs": ("kto", lines([{"prompt": "p?", "chosen": "a", "rejected": "b"}]), {}, {}),
    "text": ("sft", lines([{"text": "word " * 40}, {"text": "a"}]), {"format": "text"}, {"on_long_row": "split"}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_shown_as_it_is_trained_on_or_why_it_is_not(name: str, folder: Path, tiny_tokenizer: Any) -> None:
    kind, text, source, data = CASES[name]
    Path("rows.jsonl").write_text(text)
    recipe = recipe_of({"path": "rows.jsonl"} | source, kind=kind, **data)
    prepared = prepare(recipe, tiny_tokenizer)
    trained, dropped = [], 0
    for line in range(1, len(text.splitlines()) + 1):
        rows = find_row(recipe, tiny_tokenizer, f"./rows.jsonl:{line}")
        assert all(re.fullmatch(rf"rows.jsonl:{line}(, piece \d of \d)?", row.origin) for row in rows)
        trained += [row for row in rows if row.dropped is None]
        dropped += sum(row.dropped is not None for row in rows)
    assert dropped == prepared.report.sources[0].dropped.count
    assert len(trained) == len(prepared.train)
    for row, stored in zip(trained, prepared.train, strict=True):
        if kind == "sft":
            (part,) = row.parts
            assert [token.id for token in part.tokens] == stored["input_ids"]
            weights = stored["weights"] or [1.0] * len(stored["labels"])
            expected = [0.0 if label == -100 else one for label, one in zip(stored["labels"], weights, strict=True)]
            assert [token.weight for token in part.tokens] == pytest.approx(expected)
        else:
            assert columns_of(row) == {
                name.removesuffix("_ids"): ids for name, ids in stored.items() if name.endswith("_ids")
            }
            if kind == "kto":
                assert row.parts[1].heading == f"completion, judged {'good' if stored['label'] else 'bad'}"


def drawn(rows: list[WholeRow], capsys: pytest.CaptureFixture[str]) -> str:
    for row in rows:
        draw_row(row, Console(width=200))
    return capsys.readouterr().out


def test_what_is_drawn(folder: Path, tiny_tokenizer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text(lines(SUPERVISED))
    recipe = recipe_of({"path": "rows.jsonl"}, eval={"count": 1})

    def of(line: int) -> str:
        return drawn(find_row(recipe, tiny_tokenizer, f"rows.jsonl:{line}"), capsys)

    shown = of(1)
    assert "rows.jsonl:1 (data.sources, of which data.eval holds some out: --out says which)\n" in shown
    assert re.search(r'^ +\d+ +\d+  yes +0.5  "f"$', shown, re.MULTILINE)
    assert re.search(r'^ +\d+ +\d+  no +"\\n"$', shown, re.MULTILINE)
    assert re.search(r"^ +\d+ +3  yes +0.5  <\|im_end\|>$", shown, re.MULTILINE)
    assert "turns that weigh less than others" in shown
    assert (
        "rows.jsonl:3 (" in (shown := of(3))
        and "dropped: messages[1].content is null" in shown
        and "token" not in shown
    )
    shown = of(4)
    assert re.search(r"dropped: has \d+ tokens; data.max_length is 64", shown)
    assert " tokens, 0 trained; as it would have been:" in shown and '"f"' in shown
    assert "note: <|im_end|> in the row's text, encoded as plain text" in of(5)
    stopping = recipe_of({"path": "rows.jsonl"}, on_bad_row="error")
    assert "; it stops the run" in drawn(find_row(stopping, tiny_tokenizer, "rows.jsonl:3"), capsys)


def test_rows_that_are_passed_over_or_part_of_another_s_pair(folder: Path, tiny_tokenizer: Any) -> None:
    Path("rows.jsonl").write_text(lines([{"prompt": "q?", "completion": f"a{n}", "label": n == 0} for n in range(2)]))
    only = recipe_of({"path": "rows.jsonl", "only": {"label": True}})
    (row,) = find_row(only, tiny_tokenizer, "rows.jsonl:2")
    assert row.dropped == "passed over, as only or without says" and row.key == "data.sources"
    pairs = recipe_of({"path": "rows.jsonl"}, kind="dpo")
    assert columns_of(*find_row(pairs, tiny_tokenizer, "rows.jsonl:1")).keys() == {"prompt", "chosen", "rejected"}
    (row,) = find_row(pairs, tiny_tokenizer, "rows.jsonl:2")
    assert row.dropped is None and row.notes == ["its answer stands in the pair of the good answer to its prompt"]


def test_rows_of_held_out_sources_and_of_several_are_found(folder: Path, tiny_tokenizer: Any) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        Path(name).write_text(lines([{"prompt": name[0], "completion": "c"}]))
    recipe = recipe_of({"path": "a.jsonl"}, {"path": "*.jsonl"}, eval={"sources": [{"path": "b.jsonl"}]})
    assert [row.key for row in find_row(recipe, tiny_tokenizer, "b.jsonl:1")] == ["data.sources", "data.eval.sources"]
    assert len(find_row(recipe, tiny_tokenizer, str(folder / "a.jsonl") + ":1")) == 2


def test_what_stands_behind_the_row_is_not_read(
    folder: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[SourceCounts] = []
    monkeypatch.setattr(one_row, "SourceCounts", lambda name: counts.append(SourceCounts(name)) or counts[-1])
    Path("rows.jsonl").write_text(lines([{"prompt": f"q{n}", "completion": "a"} for n in range(500)]))
    assert len(find_row(recipe_of({"path": "rows.jsonl"}), tiny_tokenizer, "rows.jsonl:3")) == 1
    assert [one.read for one in counts] == [4]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("rows.jsonl", "--row: got 'rows.jsonl'; must be FILE:LINE, such as rows.jsonl:12"),
        (
            "row.jsonl:1",
            "--row: the recipe reads no file row.jsonl; it reads rows.jsonl, many.json; did you mean rows.jsonl?",
        ),
        ("rows.jsonl:2", "--row: no row that is read begins at rows.jsonl:2; the nearest is rows.jsonl:1"),
        ("rows.jsonl:99", "--row: no row that is read begins at rows.jsonl:99; the nearest is rows.jsonl:4"),
        ("many.json:1", "--row: no row that is read begins at many.json:1; the nearest is many.json:1 (row 1)"),
        (
            "many.json:1 (row 9)",
            "--row: no row that is read begins at many.json:1 (row 9); the nearest is many.json:1 (row 3)",
        ),
    ],
)
def test_a_wrong_place_is_said_with_the_nearest(place: str, says: str, folder: Path, tiny_tokenizer: Any) -> None:
    row = {"prompt": "q", "completion": "a"}
    Path("rows.jsonl").write_text(lines([row, "", "", row]))
    Path("many.json").write_text(json.dumps([row] * 3))
    recipe = recipe_of({"path": "rows.jsonl"}, {"path": "many.json"})
    with pytest.raises(InputError) as error:
        find_row(recipe, tiny_tokenizer, place)
    assert str(error.value) == says and error.value.status == 2
    assert len(find_row(recipe, tiny_tokenizer, "many.json:1 (row 2)")) == 1
