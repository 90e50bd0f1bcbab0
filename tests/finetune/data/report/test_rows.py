"""The account of the data, read off the screen."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid_ft.finetune.data.report.view import histogram


@settings(max_examples=100)
@given(st.lists(st.integers(1, 70_000), min_size=1, max_size=50))
def test_histogram_counts_every_row(lengths: list[int]) -> None:
    rows = histogram(np.array(lengths))
    assert sum(count for _, count, _ in rows) == len(lengths) and len(rows) <= 20
    assert max(width for *_, width in rows) == 40
    assert all((width > 0) == (count > 0) for _, count, width in rows)


def test_a_gap_in_the_histogram_is_one_line() -> None:
    rows = histogram(np.array([84, 103]))
    assert [(label, count) for label, count, _ in rows] == [("84 to 85", 1), ("86 to 101", 0), ("102 to 103", 1)]
    assert histogram(np.array([3, 3, 4]))[-1][0] == "4" and histogram(np.array([7]))[0][0] == "7"
