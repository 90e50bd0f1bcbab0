"""Questions that several processes share: each answers its part, and all read every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hybrid_ft.finetune.evaluation.kept import Kept

One = TypeVar("One")


@dataclass(frozen=True)
class Share:
    """One process's part, ``rank`` of ``count``.

    stopped  whether this process is to leave off
    meet     waits for the others and adds their answers; raises where one of them has left off
    """

    rank: int = 0
    count: int = 1
    stopped: Callable[[], bool] = lambda: False
    meet: Callable[[Kept], None] = lambda kept: None

    def of(self, questions: Sequence[One]) -> list[One]:
        return list(questions[self.rank :: self.count])


ALONE = Share()
