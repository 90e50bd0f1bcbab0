"""One source as rows in tokens, chunk by chunk, from any row on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.labels import chosen_by
from hybrid_ft.finetune.data.messages.row_forms import Form
from hybrid_ft.finetune.data.reading import LOOK_AHEAD, converted
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.report.count import Count, Counts
from hybrid_ft.finetune.data.source_rows import BATCH, text_hash
from hybrid_ft.finetune.data.sources.rows import BadRow, Row
from hybrid_ft.finetune.data.sources.source import Opened
from hybrid_ft.finetune.data.streaming.chunk import encoded_chunk
from hybrid_ft.finetune.data.streaming.chunk_forms import ChunkReader
from hybrid_ft.finetune.data.streaming.raw_rows import raw_rows
from hybrid_ft.finetune.data.streaming.stream_rows import AnyRow, rows_of

if TYPE_CHECKING:
    from hybrid_ft.finetune.data.way import Way
    from hybrid_ft.finetune.recipe.data_section import Source

State = dict[str, Any]

_LOOKED_AT = 10_000
"""Rows in which a column of ``without`` must come, as a stream's end may never be read; of JSON not
every row has it."""


@dataclass(frozen=True)
class HeldOutRule:
    """Which rows are held out: those whose question has a hash in the first ``fraction`` of all hashes.

    So a row's side depends on what it asks and the seed alone, and rows that ask the same are on one side.
    """

    fraction: float
    seed: int

    def hash(self, asked: int) -> float:
        """From 0 to 1; ``asked``: ``text_hash`` of what a row asks."""
        return text_hash(f"{self.seed} {asked}") / 2**64

    def holds(self, asked: int) -> bool:
        return self.fraction > 0 and self.hash(asked) < self.fraction


class SourceStream:
    """A source's usable rows that are not held out, in its order, ``repeat`` times a pass.

    ``counts`` are of the first time that it is read, ``held`` its held-out rows. ``state`` is where it stands: what
    ``load`` goes on from, reading at most one chunk again.
    """

    after_chunk: Callable[[], None] = staticmethod(lambda: None)
    """called when a chunk has been read"""

    def __init__(self, source: Source, way: Way[Any, Any], reader: ChunkReader, rule: HeldOutRule) -> None:
        reader.check(source)
        self._source, self._way, self._rule = source, way, rule
        self._raw = raw_rows(source)
        self._only = chosen_by(source, self._raw.name)
        first = self._first_rows()
        self._form = reader.form(source, first, self._raw.name) if first else None
        self.counts, self.held = SourceCounts(self._raw.name), 0
        self.counts.repeat = source.repeat
        self.turns, self._left = 0, source.repeat - 1
        self._rows: list[AnyRow] = []
        self._taken = 0
        self._before = self._here()

    @property
    def size(self) -> int | None:
        """Bytes on disk, each as often as a pass reads it; None where they are not here."""
        size = getattr(self._raw, "size", None)
        return None if size is None else size * self._source.repeat

    @property
    def files(self) -> list[str]:
        """Those that are here."""
        return getattr(self._raw, "files", [])

    def next(self) -> AnyRow | None:
        """The next row; None at the end of a pass, until ``rewind``."""
        while self._taken == len(self._rows):
            if self._next_chunk():
                self.after_chunk()
                continue
            if not self._left:
                return None
            self._left -= 1
            self._again()
        self._taken += 1
        return self._rows[self._taken - 1]

    def rewind(self) -> None:
        """Begin the next pass."""
        self._left = self._source.repeat - 1
        self._again()

    def state(self) -> State:
        """JSON: where the chunk at work begins, what was counted before it, and its rows that were given."""
        return self._before | {"taken": self._taken}

    def state_of_counts(self) -> State:
        """What was counted so far, JSON; of the chunk at work all rows, also those not given yet."""
        return asdict(self.counts)

    def load(self, state: State) -> None:
        """Go on from what ``state`` gave."""
        self._raw.load(state["place"])
        self.counts, self.held = counts_of(state["counts"]), state["held"]
        self._raw.notes[:] = self.counts.notes
        self.turns, self._left = state["turns"], state["left"]
        self._rows, self._taken, self._before = [], 0, self._here()
        if state["taken"]:
            self._next_chunk()
            self._taken = state["taken"]

    def next_table(self) -> tuple[pa.Table, Sequence[int]] | None:
        """The next chunk's rows by the way's schema, and hashes of what they ask; None at the end."""
        self._before = self._here()
        counts = self.counts if self.turns == 0 else SourceCounts(self._raw.name)
        known, counts.ignored = counts.ignored, []
        rows = self.converted_chunk(counts)
        if rows is None:
            counts.ignored = known
            return None
        encoded = encoded_chunk(rows, counts, self._way)
        counts.ignored = known + [name for name in counts.ignored if name not in known]
        counts.taken = counts.kept
        return encoded

    def converted_chunk(self, counts: SourceCounts) -> Iterator[tuple[str, Any]] | None:
        """The next chunk's rows as messages, each with its origin, or the reason why it is none; None at the end."""
        raw = self._raw.take(BATCH)
        if not raw:
            if self._only is not None and not counts.read:
                self._only.check(counts.passed_over)
            return None
        rows = self._chosen(raw)
        counts.passed_over += len(raw) - len(rows)
        opened = Opened(self._raw.name, iter(rows), self._raw.notes)
        if self._form is None:  # none of the source's rows can be read
            return self._way.sift(converted(opened, counts, _no_form, BadRow))
        return self._way.sift(self._form.convert(opened, counts))

    def _next_chunk(self) -> bool:
        chunk = self.next_table()
        self._rows, self._taken = [], 0
        if chunk is None:
            return False
        table, asked = chunk
        out = [self._rule.holds(question) for question in asked]
        self.held += sum(out) if self.turns == 0 else 0
        self._rows = rows_of(table, [row for row, held in enumerate(out) if not held])
        return True

    def _again(self) -> None:
        self.turns += 1
        self._raw.rewind()
        self._rows, self._taken, self._before = [], 0, self._here()

    def _here(self) -> State:
        counted = {"counts": asdict(self.counts), "held": self.held}
        return {"place": self._raw.place(), "turns": self.turns, "left": self._left} | counted

    def _chosen(self, rows: Iterable[Row | BadRow]) -> list[Row | BadRow]:
        return [row for row in rows if isinstance(row, BadRow) or self._only is None or self._only.takes(row.values)]

    def _first_rows(self) -> list[Row]:
        """The rows that decide the form, which are the same wherever a stream goes on.

        Raises InputError for a column of the source's ``without`` that no row has, as far as they are looked at.
        """
        found: list[Row] = []
        chosen = read = 0
        while rows := self._look(read):
            read += len(rows)
            some = self._chosen(rows)
            if chosen < LOOK_AHEAD or not found:
                chosen += len(some)
                found += [row for row in some if isinstance(row, Row)]
            unseen = self._only is not None and self._only.unseen()
            if chosen >= LOOK_AHEAD and found and (not unseen or read >= _LOOKED_AT):
                break
        if self._only is not None and read:
            self._only.check_unwanted("" if not rows else f" in the first {read:,} rows of the stream")
        self._raw.rewind()
        return found

    def _look(self, read: int) -> list[Row | BadRow]:
        """The next rows, none at the end, nor where the file cannot be read on behind the ``read`` ones: that is said
        when the stream comes to it, after what is said of the rows before."""
        try:
            return self._raw.take(LOOK_AHEAD)
        except InputError:
            if not read:
                raise
            return []


def _no_form(rows: list[Row]) -> Form:
    raise AssertionError("the first rows that can be read decide the form")


def counts_of(state: State) -> SourceCounts:
    """What ``asdict`` made of counts, and JSON of that."""
    values: dict[str, Any] = {
        name: Counts({reason: Count(**count) for reason, count in value["by_reason"].items()})
        if isinstance(value, dict)
        else value
        for name, value in state.items()
    }
    return SourceCounts(**values)
