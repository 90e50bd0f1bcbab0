"""Rows chosen by their columns' values, or called bad by a rating."""

from typing import Any

import pytest
import yaml

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.labels import Only, chosen_by, rated_bad
from hybrid_ft.finetune.recipe.data_section import Source

ROWS = [{"lang": "en", "ok": True, "n": 1}, {"lang": "de ", "ok": "False", "n": 2.0}, {"lang": None, "ok": 0, "n": 3}]


@pytest.mark.parametrize(
    ("wanted", "unwanted", "taken"),
    [
        ({"lang": "de"}, None, [1]),
        ({"lang": ["en", "null"]}, None, [0, 2]),
        ({"ok": False}, None, [1]),  # a table of text writes False
        ({"ok": 0}, None, [2]),
        ({"n": [1, 2]}, None, [0, 1]),  # 2.0 is 2
        (None, {"lang": "en"}, [1, 2]),
        ({"n": [1, 2]}, {"ok": True}, [1]),
    ],
)
def test_rows_are_taken_by_what_is_written(wanted: Any, unwanted: Any, taken: list[int]) -> None:
    only = Only(wanted, unwanted, "a.jsonl")
    assert [n for n, row in enumerate(ROWS) if only.takes(row)] == taken
    only.check(len(ROWS))


def test_a_choice_that_takes_nothing_says_what_is_there() -> None:
    only = Only({"lang": "fr"}, None, "a.jsonl")
    assert not any(only.takes(row) for row in ROWS)
    with pytest.raises(
        InputError, match=r"^a.jsonl: only: none of 3 rows has lang: fr \(the first: lang is en, de, null"
    ):
        only.check(3)
    all_gone = Only(None, {"n": [1, 2, 3]}, "a.jsonl")
    assert not any(all_gone.takes(row) for row in ROWS)
    with pytest.raises(InputError, match="without: all 3 rows have n: 1, 2, 3"):
        all_gone.check(3)


def test_a_column_that_no_row_has_is_named() -> None:
    for wanted, unwanted, key in (({"lnag": "en"}, None, "only"), (None, {"lnag": "en"}, "without")):
        only = Only(wanted, unwanted, "a.jsonl")
        for row in ROWS:
            only.takes(row)
        with pytest.raises(InputError, match=rf"{key}: no column lnag; did you mean lang\? \(found lang, ok, n\)"):
            only.check(3)
    assert only.unseen()


def test_a_source_without_a_choice_reads_all() -> None:
    assert chosen_by(Source(path="a.jsonl"), "a") is None
    assert chosen_by(Source(path="a.jsonl", without={"lang": "en"}), "a") is not None


@pytest.mark.parametrize(
    "values", [{"rating": "Thumbs Down"}, {"vote": -1}, {"is_correct": 0}, {"feedback": "\U0001f44e"}, {"label": "bad"}]
)
def test_a_row_is_a_bad_one_by_its_rating_and_what_is_said_leaves_it_out(values: dict[str, Any]) -> None:
    said = rated_bad(values, ())
    assert said is not None
    assert not Only(None, yaml.safe_load(said), "a.jsonl").takes(values)
    assert rated_bad(values, list(values)) is None


def test_a_false_rating_is_said_by_its_column_alone() -> None:
    assert rated_bad({"label": False}, ()) == "label" and rated_bad({"kto_tag": "false"}, ()) == "kto_tag"


@pytest.mark.parametrize("values", [{"label": 0}, {"vote": 1}, {"text": "bad"}])
def test_a_class_is_no_rating(values: dict[str, Any]) -> None:
    assert rated_bad(values, ()) is None
