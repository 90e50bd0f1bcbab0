"""Counts of judged answers, by hand."""

from typing import Any

import numpy as np
import pytest

from hybrid_ft.finetune.data.report.answers import AnswerCounts


def counts(good: list[bool], weights: tuple[float, float] = (1.0, 1.0)) -> AnswerCounts:
    """Prompts of 10 tokens, each asked twice, and answers of 1, 2, 3 ... tokens."""
    rows = len(good)
    return AnswerCounts(
        prompt=np.full(rows, 10),
        completion=np.arange(1, rows + 1),
        good=np.array(good),
        prompts=rows // 2,
        once=10 * (rows // 2),
        duplicates=1,
        reversed_too=2,
        batch_tokens=64,
        weights=weights,
    )


def test_tokens_and_what_shared_prompts_save() -> None:
    found = counts([True, True, True, False])
    assert (found.rows, found.good_rows, found.tokens) == (4, 3, 4 * 10 + 1 + 2 + 3 + 4)
    assert found.saved_share == 20 / 50
    assert "4 rows, 3 good and 1 bad, 2 prompts, 50 tokens, at most 40.0 % saved" in found.line("train")
    assert dict(found.table())["saved by shared prompts, at most"] == "40.0 %"
    said = found.as_dict()
    assert (said["good_rows"], said["bad_rows"], said["duplicate_rows"], said["rows_there_both_ways"]) == (3, 1, 1, 2)
    assert said["length"]["row"]["longest"] == 14


@pytest.mark.parametrize(
    ("good", "weights", "noted"),
    [
        (2, (1.0, 1.0), False),
        (3, (1.0, 1.0), True),
        (3, (1.0, 3.0), False),  # 3 good for 1 bad of weight 3: even
        (3, (1.0, 2.25), False),  # 1.33
        (3, (1.0, 2.2), True),
        (1, (1.0, 1.0), True),
        (1, (0.0, 1.0), False),  # a choice
    ],
)
def test_weights_that_leave_one_side_heavier_are_noted(good: int, weights: Any, noted: bool) -> None:
    assert bool(counts([True] * good + [False] * (4 - good), weights).notes()) is noted


def test_the_weights_that_are_advised_are_the_papers() -> None:
    """Equation 8 of 2402.01306: good weight times good rows over bad weight times bad rows, from 1 to 4/3."""
    (note,) = counts([True] * 6 + [False] * 2).notes()
    assert "weigh 3.00 times as much" in note
    low, high = 2 / 6, 4 / 3 * 2 / 6
    assert f"kto.desirable_weight to {low:.2f} to {high:.2f}" in note
    assert f"kto.undesirable_weight to {6 / 2 * 3 / 4:.2f} to {6 / 2:.2f}" in note


def test_a_side_that_is_missing_is_noted() -> None:
    assert counts([True, True]).notes() == [
        "no answer is bad: the model can only learn to make all answers more likely"
    ]
    assert "no answer is good" in counts([False, False]).notes()[0]
