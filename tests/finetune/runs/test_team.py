"""Which processes share a micro-batch. That they compute one together is in tests/hybrid_model/layers/test_heads.py."""

import pytest

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import team as teams
from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.team import Team


def test_alone_each_process_is_a_team():
    found = [Team.of(Processes(3, rank)) for rank in range(3)]
    assert [(one.size, one.count, one.number, one.speaks) for one in found] == [(1, 3, n, True) for n in range(3)]


def test_neighbours_are_a_team(monkeypatch):
    made = []
    monkeypatch.setattr(teams.dist, "new_group", lambda ranks, timeout: made.append(list(ranks)) or tuple(ranks))
    found = [Team.of(Processes(6, rank), 3) for rank in range(6)]
    assert made == [[0, 1, 2], [3, 4, 5]] * 6  # every process takes part in making all of them
    assert [(one.number, one.place) for one in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [one.group for one in found] == [(0, 1, 2)] * 3 + [(3, 4, 5)] * 3
    assert [one.speaks for one in found] == [True, False, False] * 2 and {one.count for one in found} == {2}


@pytest.mark.parametrize(("processes", "size"), [(1, 2), (6, 4), (2, 3)])
def test_processes_that_do_not_fall_into_teams_are_refused(processes, size):
    with pytest.raises(
        InputError, match=f"^train.sequence_parallel: got {size}; must divide .* processes \\({processes}\\);"
    ):
        Team.of(Processes(processes, 0), size)
