"""What a source's rows come to beside their turns: columns that are left out, ratings, and the rows that are wanted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.noticed import MISSING_AS_TEXT
from hybrid_ft.finetune.data.reading import conversations, judgements, preferences
from hybrid_ft.finetune.data.report.account import NOTES, Account, SourceCounts
from hybrid_ft.finetune.data.report.rows import RowCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.recipe.data_section import Source

TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def read(
    tmp_path: Path, rows: list[dict[str, Any]], pairs: bool = False, **source: Any
) -> tuple[list[Any], SourceCounts]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = SourceCounts(str(path))
    made = (preferences if pairs else conversations)(Source(path=str(path), **source), counts)
    return [item for _, item in made], counts


ROWS = {
    "messages": {"messages": TURNS},
    "role and content": {"conversations": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "prompt": {"prompt": "q", "completion": "a"},
    "turns and text": {"prompt": TURNS[:1], "completion": "a"},
    "turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "alpaca": {"instruction": "q", "output": "a"},
}
PAIRS = {
    "answers": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "answers to turns": {"prompt": TURNS[:1], "chosen": "a", "rejected": "b"},
    "conversations": {"chosen": TURNS, "rejected": [TURNS[0], TURNS[1] | {"content": "b"}]},
    "transcripts": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "outputs": {"prompt": "q", "output_1": "a", "output_2": "b", "preference": 1},
}
BESIDE = {
    "system": "s",
    "system_prompt": "s",
    "tools": [{"name": "f"}],
    "functions": [{"name": "f"}],
    "available_tools": '[{"name": "f"}]',
    "history": [["x", "y"]],
    "input": "about",
    "context": "about",
}


@pytest.mark.parametrize("form", [*ROWS, *PAIRS])
@pytest.mark.parametrize("column", BESIDE)
def test_a_column_that_any_form_reads_is_read_or_named_in_a_note(form: str, column: str, tmp_path: Path) -> None:
    pairs = form in PAIRS
    bare = PAIRS[form] if pairs else ROWS[form]
    (row,), counts = read(tmp_path, [bare | {column: BESIDE[column]}], pairs)
    before = row.prompt if pairs else row.messages[:-1]
    question = column in ("history", "input", "context")
    if question and form not in ("prompt", "alpaca", "answers", "outputs"):
        assert before == TURNS[:1] and list(counts.left_out.by_reason) == [column]
        return
    assert not counts.left_out.by_reason and column not in counts.ignored
    if column in ("system", "system_prompt"):
        assert before == [{"role": "system", "content": "s"}, TURNS[0]]
    elif not question:
        assert row.tools == [{"name": "f"}] and before == TURNS[:1]
    else:
        texts = {"history": ["x", "y", "q"]}.get(column, ["q\n\nabout"])
        assert [message["content"] for message in before] == texts


def test_what_a_mapping_leaves_out_is_named(tmp_path: Path) -> None:
    rows = [
        {"q": "q", "a": "a", "system": "s", "images": [], "train": False, "id": 1},
        {"q": "q", "a": "a", "system": ""},
    ]
    _, counts = read(tmp_path, rows, columns={"prompt": "q", "completion": "a"})
    assert {name: count.count for name, count in counts.left_out.by_reason.items()} == {"system": 1, "train": 1}
    _, counts = read(tmp_path, rows, columns={"prompt": "q", "completion": "a", "system": "system"})
    assert set(counts.left_out.by_reason) == {"train"}


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
@pytest.mark.parametrize("form", [*ROWS, *PAIRS])
def test_pictures_films_and_sound_are_refused(column: str, form: str, tmp_path: Path) -> None:
    pairs = form in PAIRS
    row = PAIRS[form] if pairs else ROWS[form]
    (bad,), _ = read(tmp_path, [row | {column: ["cat.png"]}], pairs)
    assert isinstance(bad, BadRow) and bad.kind == "part that is not text"
    assert str(bad).startswith(f"{column}: got ") and "this model reads text" in str(bad)
    for nothing in (None, [], ""):
        (made,), counts = read(tmp_path, [row | {column: nothing}], pairs)
        assert not isinstance(made, BadRow) and not counts.left_out.by_reason


@pytest.mark.parametrize("column", ["label", "tag", "is_good", "kto_tag"])
def test_rows_that_their_label_calls_bad_are_counted(column: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q{n}", "completion": "a", column: n % 3 != 0} for n in range(9)]
    made, counts = read(tmp_path, rows)
    assert len(made) == 9 and counts.rated_bad.by_reason[column].count == 3
    made, counts = read(tmp_path, rows, only={column: True})
    assert [row.messages[0]["content"] for row in made] == ["q1", "q2", "q4", "q5", "q7", "q8"]
    assert (counts.read, counts.passed_over, counts.rated_bad.count) == (6, 3, 0)
    numbers = [row | {column: 3} for row in rows]
    assert read(tmp_path, numbers)[1].rated_bad.count == 0
    pair = PAIRS["answers"] | {column: False}
    assert read(tmp_path, [pair], pairs=True)[1].rated_bad.count == 0


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("feedback", [1, -1, 1, None]),
        ("vote", ["up", "down", "up", ""]),
        ("rating", ["thumbs_up", "thumbs_down", "thumbs_up", 3]),
        ("is_correct", [1, 0, True, "yes"]),
        ("accepted", [True, "no", "true", 1]),
        ("label", ["good", "Bad", "good", 0]),
    ],
)
def test_a_verdict_that_is_no_false_is_counted_and_its_advice_leaves_the_row_out(
    column: str, values: list[Any], tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", column: value} for n, value in enumerate(values)]
    _, counts = read(tmp_path, rows)
    ((said, count),) = counts.rated_bad.by_reason.items()
    assert count.count == 1
    made, counts = read(tmp_path, rows, without=yaml.safe_load(said))
    assert [row.messages[0]["content"] for row in made] == ["q0", "q2", "q3"] and not counts.rated_bad.count


def test_the_note_on_bad_rows_names_the_key_that_leaves_them_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a", "vote": value} for n, value in enumerate((1, -1))]
    _, counts = read(tmp_path, rows)
    none = RowCounts(np.array([1]), 1, 0, 0.0, 1, 1)
    lines = Account("x", 1, [counts], [], none, None).warnings()
    (line,) = [line for line in lines if "calls bad" in line]
    advised = re.search(r"; without: (\{.*\}) beside the source's path leaves them out$", line)
    assert advised and yaml.safe_load(advised[1]) == {"vote": "-1"}


def test_marks_that_a_judged_answer_has_no_use_for_are_named(tmp_path: Path) -> None:
    turns = [TURNS[0], TURNS[1] | {"train": False}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns, "label": True, "weight": 0.5}) + "\n")
    counts = SourceCounts("x")
    ((_, made),) = judgements(Source(path=str(path)), counts)
    assert not isinstance(made, BadRow) and "messages[].train" in counts.ignored
    assert list(counts.left_out.by_reason) == ["weight"]


def test_only_compares_as_a_table_spells_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,label,lang,n\nq1,a,True,de,1\nq2,a,false,en,2\nq3,a,TRUE,en,3.0\n")

    def asked(**only: Any) -> list[str]:
        rows = conversations(Source(path=str(path), only=only), SourceCounts("x"))
        return [row.messages[0]["content"] for _, row in rows if not isinstance(row, BadRow)]

    assert asked(label=True) == ["q1", "q3"]
    assert asked(label=True, lang="en") == ["q3"]
    assert asked(lang=["de", "en"], n=[1, 2]) == ["q1", "q2"]
    with pytest.raises(InputError, match=r"rows.csv: only: no column lable; did you mean label\? \(found prompt, "):
        asked(lable=True)
    with pytest.raises(InputError, match=r"none of 3 rows has lang: fr \(the first: lang is de, en\); name values"):
        asked(lang="fr")


def test_without_leaves_out_rows_with_any_of_its_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion,lang\nq1,nan,de\nq2,a,en\nq3,None,en\nq4,b,de\n")

    def asked(only: Any = None, **without: Any) -> list[str]:
        rows = conversations(Source(path=str(path), only=only, without=without), SourceCounts("x"))
        return [row.messages[0]["content"] for _, row in rows if not isinstance(row, BadRow)]

    assert asked(completion="nan") == ["q2", "q3", "q4"]
    assert asked(completion=["nan", "None"]) == ["q2", "q4"]
    assert asked(completion="nan", lang="en") == ["q4"]
    assert asked(only={"lang": "de"}, completion="nan") == ["q4"]
    with pytest.raises(InputError, match=r"rows.csv: without: no column lnag; did you mean lang\? \(found prompt, "):
        asked(lnag="en")
    with pytest.raises(InputError, match=r"rows.csv: without: all 4 rows have lang: de, en; name values of the rows"):
        asked(lang=["en", "de"])


def test_the_note_on_missing_texts_names_the_key_that_leaves_them_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nq1,nan\nq2,a\n")
    advised = re.search(r"\(without: (\{.*\}) on the source", NOTES[MISSING_AS_TEXT].format(unit="row"))
    assert advised
    rows = conversations(Source(path=str(path), without=yaml.safe_load(advised[1])), SourceCounts("x"))
    assert [row.messages[0]["content"] for _, row in rows if not isinstance(row, BadRow)] == ["q2"]


@pytest.mark.parametrize(
    "names",
    [("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")],
)
def test_pairs_whose_chosen_answer_has_the_lower_score_are_counted(names: tuple[str, str], tmp_path: Path) -> None:
    scores: list[Any] = [(1, 2), (2.5, 2), (2, 2), ("0.5", "1.5"), (None, 1)]
    rows = [PAIRS["answers"] | dict(zip(names, pair, strict=True)) for pair in scores]
    made, counts = read(tmp_path, rows, pairs=True)
    assert [bool(pair.noticed) for pair in made] == [True, False, False, True, False] and counts.ignored == []
    outputs = PAIRS["outputs"] | {"output_1_score": 3, "output_2_score": 4}
    assert [bool(pair.noticed) for pair in read(tmp_path, [outputs, outputs | {"preference": 2}], pairs=True)[0]] == [
        True,
        False,
    ]


@pytest.mark.parametrize("name", [*ROWS, *PAIRS])
def test_what_a_table_pads_with_null_changes_nothing(name: str, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("role", "content", "from", "value", "weight", "tool_calls", "name"))

    def padded(value: Any) -> Any:
        return [nothing | turn for turn in value] if isinstance(value, list) else value

    plain = {**ROWS, **PAIRS}[name]
    table = dict.fromkeys([key for row in (*ROWS.values(), *PAIRS.values()) for key in row] + ["note", "label"])
    row = table | {key: padded(value) for key, value in plain.items()}
    (wanted, _), (found, counts) = (read(tmp_path, [one], name in PAIRS) for one in (plain, row))
    assert found == wanted and counts.ignored == []
