"""Advised templates: what they write of a row, rendered."""

from typing import Any

import pytest

from hybrid_ft.finetune.data.messages.column_templates import ColumnTemplate
from hybrid_ft.finetune.data.messages.written_columns import answer_inside, key_of, ref, written
from hybrid_ft.finetune.data.sources.rows import Row


def rendered(template: str | None, values: dict[str, Any]) -> str:
    assert template is not None
    return ColumnTemplate(template)({**values, "row": values})


PASSAGES = [{"title": "t", "text": "c", "score": 1}, {"title": "u", "text": "d"}]
BY_COLUMNS = {"title": ["t", "u"], "sentences": [["c", "d"], ["e"]]}


@pytest.mark.parametrize(
    ("value", "before", "text"),
    [
        ("c", True, "c\n\n"),
        (7, True, "7\n\n"),
        (["c", "d"], True, "c\n\nd\n\n"),
        (["x", "y"], False, "\nA. x\nB. y"),
        ({"A": "x", "B": "y"}, False, "\nA. x\nB. y"),
        ([{"text": "x"}, {"text": "y"}], False, "\nA. x\nB. y"),
        ([{"label": "1", "text": "x"}, {"label": "2", "text": "y"}], False, "\n1. x\n2. y"),
        (PASSAGES, True, "t\nc\n\nu\nd\n\n"),
        (BY_COLUMNS, True, "t\nc d\n\nu\ne\n\n"),
        ({"text": ["x", "y"], "label": ["C", "D"]}, False, "\nC. x\nD. y"),
    ],
)
def test_a_column_is_written_as_a_person_would(value: Any, before: bool, text: str) -> None:
    for name in ("context", "my context"):
        template = written(name, ref(name), [value], before)
        assert rendered(template, {name: value}).strip("\n") == text.strip("\n")


def test_a_letter_of_its_own_column_is_written_before_it() -> None:
    assert rendered(written("A", ref("A"), ["x"], False), {"A": "x"}).lstrip("\n") == "A. x"


@pytest.mark.parametrize(
    "value",
    [
        [{"title": "t"}],
        [{"text": "c", "other": "d"}],
        [{"text": ["c"]}],
        {"title": ["t"], "text": ["c", "d"]},
        {"a": {"b": 1}},
        [["c"]],
    ],
)
def test_what_would_lose_something_is_not_written(value: Any) -> None:
    assert written("context", "context", [value], True) is None


@pytest.mark.parametrize(
    ("rows", "answers"),
    [
        ([{"answers": ["a", "b"]}], ["a"]),
        ([{"answers": {"text": ["a"], "answer_start": [1]}}, {"answers": {"text": [], "answer_start": []}}], ["a", "unanswerable"]),
        ([{"answer": {"value": "a", "aliases": ["b"]}}], ["a"]),
        ([{"answers": [{"text": "a", "answer_start": 1}]}], ["a"]),
        ([{"answer": "a"}], ["a"]),
    ],
)  # fmt: skip
def test_the_first_answer_inside_a_column(rows: list[dict[str, Any]], answers: list[str]) -> None:
    template = answer_inside(list(rows[0]), [Row(1, row) for row in rows])
    assert [rendered(template, row) for row in rows] == answers


@pytest.mark.parametrize(
    "row",
    [
        {"answers": ["a"], "label": 0},  # options
        {"answers": ["a"], "answer": "b"},
        {"answers": [1]},
        {"answers": {"start": [1]}},
        {"text": "a"},
    ],
)
def test_where_it_may_be_another_thing_none_is_said(row: dict[str, Any]) -> None:
    assert answer_inside(list(row), [Row(1, row)]) is None


def test_a_key_that_every_object_has_is_not_taken_for_its_method() -> None:
    value = {"answers": {"items": "a", "value": "b"}}
    assert rendered(f"{{{{ {key_of('answers', 'items')} }}}}", value) == "a"
    assert key_of("answers", "value") == "answers.value" and key_of("a", "b c") == "a['b c']"
