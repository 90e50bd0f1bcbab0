"""How judged answers fall into steps and micro-batches, and whose answer is put to whose prompt."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.training.kto.batches import (
    StepCollator,
    bounds_of,
    partners_of,
)

prompts = st.lists(st.integers(0, 6), min_size=2, max_size=30).map(sorted)


@settings(max_examples=100)
@given(prompts=prompts)
def test_every_answer_goes_once_to_another_prompt(prompts: list[int]) -> None:
    partners = partners_of(prompts)
    assert sorted(partners) == list(range(len(prompts)))
    assert all(row != partner for row, partner in enumerate(partners))
    if max(Counter(prompts).values()) * 2 <= len(prompts):
        assert all(prompts[row] != prompts[partner] for row, partner in enumerate(partners))


def test_single_prompts_are_rotated_by_one_as_trl_does() -> None:
    assert partners_of([5, 6, 7, 8]) == [3, 0, 1, 2]


@pytest.mark.parametrize(
    ("rows", "a_step", "bounds"),
    [(8, 4, [0, 4, 8]), (10, 4, [0, 4, 8, 10]), (9, 4, [0, 4, 9]), (1, 4, [0, 1]), (3, 4, [0, 3]), (5, 4, [0, 5])],
)
def test_no_step_is_of_one_row(rows: int, a_step: int, bounds: list[int]) -> None:
    assert bounds_of(rows, a_step) == bounds


rows = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20)), min_size=1, max_size=30).map(
    lambda pairs: [
        {"prompt_ids": [prompt] * (prompt + 1), "completion_ids": [7] * size, "label": True, "row": number}
        for number, (prompt, size) in enumerate(pairs)
    ]
)


@settings(max_examples=30)
@given(rows=rows.filter(lambda rows: len(rows) > 1), processes=st.integers(1, 3))
def test_shares_of_a_step_add_up_to_one(rows: list[dict], processes: int) -> None:
    steps = [
        StepCollator(1, 40, 40, lambda rows: (3, 6), True, 1 / 3, processes, rank)(rows) for rank in range(processes)
    ]
    for kind in ("micro_batches", "mismatched"):
        batches = [batch for step in steps for batch in step[kind]]
        assert sum(batch["share"] for batch in batches) == pytest.approx(1)
        assert sorted(row for batch in batches if batch["share"] for row in batch["rows"]) == list(range(len(rows)))


def test_a_prompt_with_several_answers_is_named_once() -> None:
    from hybrid_ft.finetune.training.kto.batches import padded_answers

    two = [{"prompt_ids": [5, 6], "completion_ids": [7] * size, "label": size > 1} for size in (1, 3)]
    batch = padded_answers([*two, {"prompt_ids": [9], "completion_ids": [7], "label": True}], 1)
    assert batch["prompt_rows"].tolist() == [0, 0, 2] and batch["prompt_lengths"].tolist() == [2, 2, 1]
    assert batch["label"].tolist() == [False, True, True]
