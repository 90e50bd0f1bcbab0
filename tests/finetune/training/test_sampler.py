"""Whose batches are whose: the steps of any number of processes are the steps of one."""

import itertools

import pytest
from torch.utils.data import BatchSampler

from hybrid_ft.finetune.training.sampler import ShardedBatchSampler

FILLER = [-1]


def shares(rows: int, count: int, a_step: int) -> list[list[list[int]]]:
    """What each process gets of batches of two rows."""
    batches = BatchSampler(range(rows), 2, drop_last=False)
    made = [ShardedBatchSampler(batches, count, rank, FILLER, a_step) for rank in range(count)]
    got = [list(share) for share in made]
    assert [len(share) for share in made] == [len(batches) for batches in got]
    return got


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("rows", "a_step"), [(24, 4), (23, 4), (26, 4), (3, 4), (30, 1), (30, 5), (0, 3)])
def test_a_step_is_the_same_batches_for_any_number_of_processes(rows, a_step, count):
    """Each process takes as many batches a step, as transformers counts them, and together they take the step's."""
    each = -(-a_step // count)
    mine = shares(rows, count, a_step)
    assert len({len(batches) for batches in mine}) == 1
    steps = [
        sorted(batch for batches in mine for batch in batches[first : first + each] if batch != FILLER)
        for first in range(0, len(mine[0]), each)
    ]
    one = shares(rows, 1, a_step)[0]
    assert steps == [one[first : first + a_step] for first in range(0, len(one), a_step)]


def test_held_out_batches_are_shared_out():
    """A step of as many batches as processes: nobody waits but at the end."""
    assert [[batch[0] // 2 for batch in mine if batch != FILLER] for mine in shares(10, 2, 2)] == [[0, 2, 4], [1, 3]]


def test_only_who_is_left_without_a_batch_gets_the_filler():
    mine = shares(20, 3, 4)
    fillers = [batches.count(FILLER) for batches in mine]
    # steps of 4, 4 and 2 batches: two, two and one round of three
    assert fillers == [0, 2, 3]
    assert sorted(itertools.chain(*mine)) == sorted([[i, i + 1] for i in range(0, 20, 2)] + 5 * [FILLER])
