"""SFT on a stream: this team's micro-batches of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from hybrid_ft.finetune.data.streaming.source_stream import State
from hybrid_ft.finetune.data.streaming.stream_rows import StreamRow
from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer
from hybrid_ft.finetune.training.streamed import Part, StreamedTrainer, StreamParts


class StreamSteps(StreamParts):
    """This team's micro-batches of each step, as rows for the collator.

    ``a_step`` packs are a step, whatever the number of teams; one that is left without gets rows without labels.
    """

    def __init__(self, open_stream: Callable[[], RowStream], a_step: int, team: Team, packed: bool) -> None:
        super().__init__(open_stream, self._steps)
        self._a_step, self._packed = a_step, packed
        self._count, self._rank = team.count, team.number

    def _steps(self, packs: Iterator[tuple[list[StreamRow], State]]) -> Iterator[Part]:
        while step := list(islice(packs, self._a_step)):
            state = step[-1][1]
            for first in range(0, len(step), self._count):
                mine = first + self._rank
                rows = step[mine][0] if mine < len(step) else step[0][0][:1]
                yield self._examples(rows, filler=mine >= len(step)), state

    def _examples(self, rows: list[StreamRow], filler: bool) -> list[dict[str, Any]]:
        """One example of rows end to end where they are packed, else an example a row."""
        return [_example(some, filler) for some in ([rows] if self._packed else [[row] for row in rows])]


def _example(rows: list[StreamRow], filler: bool) -> dict[str, Any]:
    """As ``packs_dataset`` puts rows together; they are named by their origins."""
    ids = [token for row in rows for token in row.ids.tolist()]
    weighted = any(len(row.weights) for row in rows)
    weights = [one for row in rows for one in (row.weights.tolist() or [1.0] * len(row.ids))] if weighted else []
    return {
        "input_ids": ids,
        "labels": [-100] * len(ids) if filler else [label for row in rows for label in row.labels.tolist()],
        "weights": weights,
        "seq_lengths": [len(row.ids) for row in rows],
        "rows": [] if filler else [row.origin for row in rows],
    }


class StreamedSFTTrainer(StreamedTrainer, PackedSFTTrainer):
    """SFT on a stream."""
