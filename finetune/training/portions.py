"""A step's rows as micro-batches of at most so many tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset

from hybrid_ft.finetune.data.packing import pack

Row = dict[str, Any]


def tokens_of(row: Row, columns: Iterable[str]) -> int:
    """Tokens in all of these columns: what a row takes of a micro-batch's budget."""
    return sum(len(row[name]) for name in columns)


def sizes_of(rows: Dataset, columns: Iterable[str]) -> list[int]:
    """The same of every row, without reading the tokens."""
    sizes: list[int] = []
    for table in rows.with_format("arrow").iter(10_000):
        sizes += sum(pc.list_value_length(table[name]).to_numpy() for name in columns).tolist()
    return sizes


def in_portions(sizes: Sequence[int], budget: int, processes: int = 1) -> list[list[list[int]]]:
    """For each process its micro-batches, as many for one as for another; each of at most ``budget`` tokens.

    A step has fewer rows than processes at most at an epoch's end; a process that is left without any gets empty
    micro-batches, because the others wait for its gradients.
    """
    portions = pack(sizes, budget)
    while len(portions) % processes:
        # every process must take as many: halving the fullest costs one more forward, no more memory
        largest = max(portions, key=len)
        if len(largest) < 2:
            portions.append([])
            continue
        portions.remove(largest)
        portions += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    # largest first, so that what a process lacks can be made up with smaller ones
    portions.sort(key=lambda portion: -sum(sizes[row] for row in portion))
    shares: list[list[list[int]]] = [[] for _ in range(processes)]
    for start in range(0, len(portions), processes):
        # the process with the least work so far gets the largest of the next ones
        order = sorted(range(processes), key=lambda p: sum(sizes[row] for portion in shares[p] for row in portion))
        for process, portion in zip(order, portions[start : start + processes], strict=True):
            shares[process].append(portion)
    return shares


def micro_batches(
    rows: Sequence[Row],
    portions: Sequence[Sequence[int]],
    padded: Callable[[Sequence[Row]], dict[str, Any]],
    weight: Callable[[Row], float] = lambda row: 1,
) -> list[dict[str, Any]]:
    """A process's micro-batches of a step's rows: what ``padded`` makes of each portion, with ``share``, its part of
    the step's loss by ``weight`` (0 where the portion is empty and a row stands in), and ``rows``, their numbers."""
    whole, batches = sum(map(weight, rows)), []
    for portion in portions:
        members = [rows[row] for row in portion or [0]]
        batch = padded(members)
        batch["share"] = sum(map(weight, members)) / whole if portion else 0.0
        batch["rows"] = [row["row"] for row in members]
        batches.append(batch)
    return batches
