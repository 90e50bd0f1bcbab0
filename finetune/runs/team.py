"""Teams of processes that share the tokens of each micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.processes import PATIENCE, Processes


@dataclass(frozen=True)
class Team:
    """This process's team: number ``number`` of ``count``, each with micro-batches of its own, which its ``size``
    processes share. This one is at place ``place`` in it.

    ``group`` is torch's, None where a process is a team.
    """

    size: int = 1
    place: int = 0
    count: int = 1
    number: int = 0
    group: Any = None

    @classmethod
    def of(cls, processes: Processes, size: int = 1) -> Team:
        """Teams of neighbours. All processes together. Raises InputError where they cannot be divided so."""
        check_teams(processes.count, size)
        number, place = divmod(processes.rank, size)
        count = processes.count // size
        group = None
        if size > 1:
            # each of them takes part in making every group
            groups = [dist.new_group(range(n * size, (n + 1) * size), timeout=PATIENCE) for n in range(count)]
            group = groups[number]
        return cls(size, place, count, number, group)

    @property
    def speaks(self) -> bool:
        """Whether what a whole team has counts here, so that a sum over all processes has it once."""
        return self.place == 0

    @property
    def said(self) -> str:
        """As a run says it when it begins."""
        return f"; each micro-batch's tokens lie with {self.size}" if self.size > 1 else ""


def check_teams(processes: int, size: int) -> None:
    """Raise InputError unless so many processes fall into teams of ``size``."""
    if processes % size:
        raise InputError(
            f"train.sequence_parallel: got {size}; must divide the number of processes ({processes}); set it to a divisor, "
            "or start another number of them (hybrid-ft launch --processes)"
        )
