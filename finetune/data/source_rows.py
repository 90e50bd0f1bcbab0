"""One source's rows on their way into tokens, batch by batch, in order."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import pyarrow as pa

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.column_templates import RUNAWAY_COLUMNS
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.messages.text_of import text_of
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.template import RUNAWAY
from hybrid_ft.finetune.data.way import Item, Made, Reason, Tokens, Way

BATCH, CHARACTERS = 256, 2**21
"""Rows encoded at a time: so many, and no more once they have so many characters, which in tokens take
fifty times the room."""

ASKED, WHOLE, OPPOSITE = "hash-asked", "hash-whole", "hash-opposite"
"""Hashes of a row's texts among its numbers."""

_FIX = "Fix it, or set data.on_bad_row: skip"
_ALWAYS = {RUNAWAY: "Set model.chat_template to another one", RUNAWAY_COLUMNS: "Fix the template in columns"}


@dataclass(slots=True)
class Kept:
    """A row that is trained on, in so many ``pieces``; ``control``: control tokens in its
    texts; ``happened``: by NOTES."""

    pieces: int
    control: tuple[str, ...]
    happened: dict[str, int]


@dataclass(slots=True)
class EncodedBatch:
    """What became of the rows of a batch, fewer where a template had to be stopped, and the kept ones for the file.

    ``numbers``: of each piece, by name: its sizes, and the hashes of its row's texts.
    """

    fates: list[Kept | Reason] = field(default_factory=list)
    numbers: dict[str, array[int]] = field(default_factory=dict)
    table: pa.RecordBatch | None = None

    def note(self, name: str, number: int, kind: str = "q") -> None:
        """Add one number of the next piece."""
        self.numbers.setdefault(name, array(kind)).append(number)


Rows = Sequence[tuple[str, Any]]
"""Converted rows, each with its origin."""
Batch = list[tuple[str, Any]]
"""The same, or in the place of a row the reason why there is none."""
InOrder = Callable[[Iterator[Batch], Callable[[Batch], Rows | None]], Iterator[tuple[Batch, EncodedBatch | None]]]
"""Encodes what a function takes of each batch, all in their order; None where it takes nothing."""


def encoded_batch(way: Way[Made, Tokens], schema: pa.Schema, rows: Rows) -> EncodedBatch:
    """Encode converted rows, each with its origin, and fit them to the recipe's limits."""
    found = EncodedBatch()
    columns: list[dict[str, Any]] = []
    for (origin, item), tokens in zip(rows, way.encode([item for _, item in rows]), strict=False):
        if isinstance(tokens, BadRow | Unusable):
            found.fates.append(tokens)
            continue
        try:
            fitted, happened = way.fit(tokens)
        except (BadRow, Unusable) as reason:
            found.fates.append(reason)
            continue
        pieces = list(fitted) if isinstance(fitted, Sequence) else [fitted]
        for number, piece in enumerate(pieces):
            _note(found, item, piece.sizes(), number)
            columns.append(piece.columns() | {"origin": origin})
        counts = {kind: count for kind, count in (*item.noticed.items(), *happened.items()) if count}
        found.fates.append(Kept(len(pieces), tuple(dict.fromkeys(tokens.control_tokens_as_text)), counts))
    if columns:
        by_name = {name: [row[name] for row in columns] for name in schema.names}
        found.table = pa.RecordBatch.from_pydict(by_name, schema=schema)
    return found


def _note(found: EncodedBatch, item: Item, sizes: Mapping[str, int], piece: int) -> None:
    for name, size in sizes.items():
        found.note(name, size)
    found.note(ASKED, text_hash(item.asked()), "Q")
    found.note(WHOLE, text_hash(f"{piece} {item.whole()}" if piece else item.whole()), "Q")
    if (opposite := item.opposite()) is not None:
        found.note(OPPOSITE, text_hash(opposite), "Q")


class SourceRows(Generic[Made, Tokens]):
    """The rows of one source; bad, useless and long ones sorted out and counted, in the order of the rows."""

    def __init__(self, counts: SourceCounts, way: Way[Made, Tokens], in_order: InOrder) -> None:
        self._counts, self._way, self._in_order = counts, way, in_order
        self._first_stop: tuple[str, Reason, str] | None = None
        self._stops = 0
        self._unreadable: InputError | None = None
        self._fields: set[str] = set()

    def batches(self, rows: Iterator[tuple[str, Made | Reason]]) -> Iterator[EncodedBatch]:
        """The batches of which something is kept. Raises InputError for a row that stops the run, once all are read."""
        read = self._read(rows)
        for batch, encoded in self._in_order(read, self._good):
            for origin, row in batch:
                if isinstance(row, BadRow | Unusable):
                    self._drop(origin, row)
            # after the first row that stops the run, the rest is only counted
            if encoded is None or self._first_stop:
                continue
            good = (origin for origin, row in batch if not isinstance(row, BadRow | Unusable))
            for origin, fate in zip(good, encoded.fates, strict=False):
                self._count(origin, fate)
            if encoded.table is not None:
                yield encoded
        left_out = [name for name in self._fields if not self._way.mentions(name.rpartition(".")[2])]
        self._counts.ignored += sorted(name if "." in name else f"turns' {name}" for name in left_out)
        # a row that stops the run comes first, in the file and in what is said
        if self._first_stop:
            raise self._error(*self._first_stop)
        if self._unreadable is not None:
            raise self._unreadable

    def _read(self, rows: Iterator[tuple[str, Made | Reason]]) -> Iterator[Batch]:
        while self._unreadable is None:
            batch: Batch = []
            size = 0
            try:
                while len(batch) < BATCH and size < CHARACTERS and (row := next(rows, None)) is not None:
                    batch.append(row)  # what came before an error stays in it
                    size += 0 if isinstance(row[1], BadRow | Unusable) else len(text_of(row[1]))
            except InputError as error:
                self._unreadable = error
            if not batch:
                return
            yield batch

    def _good(self, batch: Batch) -> Rows | None:
        """The rows of a batch to encode; none once something stops the run."""
        good = [(origin, row) for origin, row in batch if not isinstance(row, BadRow | Unusable)]
        for _, row in good:
            self._fields |= row.fields()
        stopped = self._first_stop or any(
            isinstance(row, BadRow | Unusable) and self._fix(row) is not None for _, row in batch
        )
        return good if good and not stopped else None

    def _count(self, origin: str, fate: Kept | Reason) -> None:
        if isinstance(fate, BadRow | Unusable):
            self._drop(origin, fate)
            return
        self._counts.kept += fate.pieces
        for token in fate.control:
            self._counts.control_tokens_as_text.add(token, origin)
        for kind, count in fate.happened.items():
            self._counts.happened.add(kind, origin, count)

    def _drop(self, origin: str, reason: Reason) -> None:
        self._counts.dropped.add(reason.kind, origin)
        if fix := self._fix(reason):
            self._first_stop = self._first_stop or (origin, reason, fix)
            self._stops += 1

    def _fix(self, reason: Reason) -> str | None:
        if reason.kind in _ALWAYS:
            return _ALWAYS[reason.kind]
        if isinstance(reason, BadRow) and self._way.bad_rows_stop:
            return _FIX
        return self._way.stops.get(reason.kind)

    def _error(self, origin: str, reason: Reason, fix: str) -> InputError:
        what = "bad" if isinstance(reason, BadRow) else "long"
        rows = "row" if self._stops == 1 else "rows"
        return InputError(f"{origin}: {reason}; {self._stops:,} {what} {rows} of {self._counts.read:,}. {fix}")


def text_hash(text: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
