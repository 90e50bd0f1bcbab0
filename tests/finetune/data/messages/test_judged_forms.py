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


def test_a_mark_of_training_is_no_judgement() -> None:
    """It is left out of rows and turns, and said where nothing uses it."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "train": False}]
    made = judged({"messages": turns, "label": True, "weight": 0})
    assert made.good and made.conversation.weights == {} and made.unused == {"messages[].train"}


def test_a_column_that_holds_nothing_is_no_label() -> None:
    label = label_of(Source(path="x"), [Row(1, {"prompt": "q", "completion": "a", "label": None, "vote": 1})])
    assert label is not None and label.column == "vote"
