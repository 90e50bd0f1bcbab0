"""Rows in batches: the longest first, within the budget, smaller where memory runs out."""

import pytest
import torch

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.evaluation.batches import Budget, common_prefix, in_batches


def test_batches_are_the_longest_first_and_within_the_budget() -> None:
    seen: list[list[int]] = []
    sizes = [5, 30, 10, 20, 1]

    def work(rows: list[int]) -> list[int]:
        seen.append(rows)
        return [10 * row for row in rows]

    assert dict(in_batches(sizes, Budget(tokens=35), work)) == {row: 10 * row for row in range(5)}
    assert seen == [[1], [3, 2, 0], [4]]
    seen.clear()
    list(in_batches(sizes, Budget(tokens=40), work, padded=True))
    assert seen == [[1], [3, 2], [0, 4]]
    seen.clear()
    list(in_batches(sizes, Budget(tokens=20), work, padded=True, room=2))
    assert seen == [[1], [3, 2], [0, 4]]


@pytest.mark.parametrize("there", range(6))
def test_batches_after_an_interruption_are_those_without(there: int) -> None:
    sizes = [5, 30, 10, 20, 1]
    seen: list[list[int]] = []

    def work(rows: list[int]) -> list[int]:
        seen.append(rows)
        return [10 * row for row in rows]

    order = [1, 3, 2, 0, 4]
    done = [row in order[:there] for row in range(5)]
    assert dict(in_batches(sizes, Budget(tokens=35), work, done=done)) == {row: 10 * row for row in order[there:]}
    assert seen == [rows for rows in ([1], [3, 2, 0], [4]) if rows[-1] in order[there:]]
    # of any other choice, as of rows that were added, the missing ones alone
    seen.clear()
    assert dict(in_batches(sizes, Budget(tokens=35), work, done=[True, True, False, False, True])) == {2: 20, 3: 30}
    assert seen == [[3, 2]]


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("x: can't allocate memory: y")]
)
def test_a_smaller_batch_where_memory_runs_out(error: Exception) -> None:
    seen: list[int] = []

    def work(rows: list[int]) -> list[int]:
        seen.append(len(rows))
        if len(rows) > 3:
            raise error
        return rows

    budget = Budget()
    assert sorted(row for row, _ in in_batches([4] * 12, budget, work)) == list(range(12))
    assert seen == [12, 6, 3, 3, 3, 3] and budget.tokens == 12


def test_one_row_that_does_not_fit() -> None:
    def work(rows: list[int]) -> list[int]:
        raise MemoryError

    with pytest.raises(InputError, match="one row of 4,000 tokens does not fit") as refused:
        list(in_batches([4000, 10], Budget(), work))
    assert refused.value.status == 3
    with pytest.raises(RuntimeError, match="another"):
        list(in_batches([1], Budget(), lambda rows: (_ for _ in ()).throw(RuntimeError("another"))))


def test_common_prefix() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4, 5], [1, 2]]) == [1, 2]
    assert common_prefix([]) == [] and common_prefix([[7, 8]]) == [7, 8]
