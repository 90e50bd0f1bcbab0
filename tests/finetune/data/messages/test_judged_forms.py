"""Supervised rows beside a label: which column says it, and what its values mean."""

from typing import Any

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.judged_forms import judged_format, label_of
from hybrid_ft.finetune.data.messages.judgement import Judgement
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.recipe.data_section import Source


def judged(values: dict[str, Any], **source: Any) -> Judgement:
    made, rows = Source(path="a.jsonl", **source), [Row(1, values)]
    label = label_of(made, rows)
    assert label is not None
    form = judged_format(made, label, rows)
    assert form is not None
    assert ("label" if label.mapped else label.column) in {*form.columns, "label"}
    return form.convert(values)


@pytest.mark.parametrize("column", ["label", "thumbs_up", "thumb", "feedback", "vote", "liked", "desirable"])
def test_a_label_goes_by_many_names_and_spellings(column: str) -> None:
    for good, bad in ((True, False), (1, 0), (1, -1), ("+1", "-1"), ("Good ", "BAD"), ("up", "down"), ("👍", "👎")):
        rows = [judged({"prompt": "q", "completion": "a", column: value}) for value in (good, bad)]
        assert [row.good for row in rows] == [True, False]
        assert [turn["content"] for turn in rows[0].conversation.messages] == ["q", "a"]


def test_the_first_known_column_is_the_label_and_pairs_have_none() -> None:
    row = {"prompt": "q", "completion": "a"}
    label = label_of(Source(path="a"), [Row(1, row | {"desirable": True, "label": False})])
    assert label is not None and label.column == "label" and not label.mapped
    assert label_of(Source(path="a"), [Row(1, {"prompt": "q", "chosen": "a", "rejected": "b"})]) is None
    pairs = Source.model_validate({"path": "a", "columns": {"prompt": "p", "chosen": "c", "rejected": "r"}})
    assert label_of(pairs, []) is None
    answers = Source.model_validate({"path": "a", "columns": {"prompt": "p", "completion": "c"}})
    with pytest.raises(InputError, match="^data.sources: a: columns: must name label"):
        label_of(answers, [])


def test_a_mapping_names_the_label_and_what_its_values_mean() -> None:
    columns = {"prompt": "q", "completion": "a", "label": "{{ stars }}"}
    stars = {"columns": columns, "labels": {5: True, 1: False}}
    values = {"q": "q", "a": "a"}
    assert judged(values | {"stars": 5}, **stars).good and not judged(values | {"stars": "1"}, **stars).good
    with pytest.raises(BadRow, match="label: got '3'; must be one of 5, 1; name it under labels"):
        judged(values | {"stars": 3}, **stars)


def test_what_nobody_judged_is_left_out_and_what_is_not_known_is_bad() -> None:
    row = {"prompt": "q", "completion": "a"}
    for nothing in (None, ""):
        with pytest.raises(Unusable, match="nobody said whether the answer was good"):
            judged(row | {"label": nothing})
    with pytest.raises(BadRow, match=r"label: got 3; must be one of true or false.*labels: \{5: true, 1: false\}"):
        judged(row | {"label": 3})


@pytest.mark.parametrize(
    ("of_answer", "of_row", "says"),
    [
        (
            {"train": False},
            {},
            "every assistant turn.s own flag says not to train it; set one to true, or drop the row",
        ),
        ({"weight": 0.5}, {}, "not trained, or not fully; a judged answer counts whole, so leave the mark or the row"),
        ({}, {"weight": 0.5}, "not trained, or not fully; a judged answer counts whole, so leave the mark or the row"),
        ({}, {"train": False}, "train: got false; the row says that it is not trained"),
        ({"mask": 1}, {}, r"messages\[1\].mask: got 1"),
    ],
)
def test_an_answer_that_is_marked_as_not_trained_is_bad(of_answer, of_row, says) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **of_answer}]
    with pytest.raises(BadRow, match=says):
        judged({"messages": turns, "label": True, **of_row})


def test_marks_of_what_is_read_before_the_answer_and_of_trained_ones_do_no_harm() -> None:
    turns = [
        {"role": "user", "content": "q", "train": False},
        {"role": "assistant", "content": "a", "train": False},
        {"role": "user", "content": "r"},
        {"role": "assistant", "content": "b", "train": True},
    ]
    made = judged({"messages": turns, "label": True, "weight": 1})
    assert made.good and made.conversation.messages[-1]["content"] == "b" and made.unused == set()
    assert (
        judged(
            {"prompt": "q", "completion": "a", "train": False},
            columns={"prompt": "prompt", "completion": "completion", "label": "train"},
        ).good
        is False
    )
