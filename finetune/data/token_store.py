"""Sources as tokens on disk, with a few numbers for each row in memory."""

from __future__ import annotations

import errno
import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.messages.column_templates import RUNAWAY_COLUMNS
from hybrid_ft.finetune.data.messages.preference import Unusable
from hybrid_ft.finetune.data.report.account import SourceCounts
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.template import RUNAWAY

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

_BATCH = 256  # rows encoded at a time

TOKENS = pa.list_(pa.int32())
WEIGHTS = pa.list_(pa.float32())
BAD_ROW_FIX = "Fix it, or set data.on_bad_row: skip"
_ALWAYS = {RUNAWAY: "Set model.chat_template to another one", RUNAWAY_COLUMNS: "Fix the template in columns"}

Reason = BadRow | Unusable


class Item(Protocol):
    """A converted row. ``noticed``: what reading it came upon, by the account's NOTES."""

    noticed: dict[str, int]

    def asked(self) -> str:
        """Equal for rows that ask the same first: such rows must stay in one split."""
        ...

    def whole(self) -> str:
        """Equal for rows that are the same."""
        ...

    def opposite(self) -> str | None:
        """Equal to ``whole`` of the row that says the contrary; None where none can."""
        ...

    def fields(self) -> set[str]:
        """Message fields, and arguments of the row's, that only some chat templates look at."""
        ...


class Encoding(Protocol):
    """An encoded row. ``control_tokens_as_text``: control tokens that stood in its texts and were encoded as text."""

    control_tokens_as_text: tuple[str, ...]

    def columns(self) -> dict[str, Any]:
        """The row for the store's file, its origin apart."""
        ...

    def sizes(self) -> dict[str, int]:
        """The numbers that are kept in memory."""
        ...


Made = TypeVar("Made", bound=Item)
Tokens = TypeVar("Tokens", bound=Encoding)


@dataclass(frozen=True)
class Way(Generic[Made, Tokens]):
    """The way of one kind of row into the store.

    ``convert`` reads a source's rows, each with its origin; a bad one comes as the reason. ``encode`` gives tokens or a
    reason for each row, fewer where a template had to be stopped. ``fit`` gives the tokens as they are trained on, or
    the pieces in which they are, and what happened to them (kind -> count, of the account's NOTES), and raises the reason
    where there are none.
    ``stops``: the kinds of rows that end the run, and the fix; ``bad_rows_stop``: every BadRow does. ``mentions``: whether
    the chat template writes a message field. ``schema``: the file's columns, all of which held-out rows need;
    ``trained_columns``: those that training needs.
    """

    convert: Callable[[Source, SourceCounts], Iterator[tuple[str, Made | Reason]]]
    encode: Callable[[list[Made]], Sequence[Tokens | Reason]]
    fit: Callable[[Tokens], tuple[Tokens | Sequence[Tokens], Mapping[str, int]]]
    stops: Mapping[str, str]
    bad_rows_stop: bool
    mentions: Callable[[str], bool]
    schema: pa.Schema
    trained_columns: tuple[str, ...]


class TokenStore:
    """The usable rows of some sources, numbered from 0 in the order of the sources."""

    def __init__(self, sources: Sequence[Source], file: Path) -> None:
        self.sources = [SourceCounts(source.path) for source in sources]
        self._file = file
        self._sizes: defaultdict[str, array[int]] = defaultdict(lambda: array("q"))
        self._source, self._prompts, self._texts = array("q"), array("Q"), array("Q")
        self._opposites = array("Q")

    def __len__(self) -> int:
        return len(self._source)

    def add(self, source: int, item: Item, encoding: Encoding, piece: int = 0) -> None:
        """Count a row of the file; ``piece``: which of several in which an item is trained."""
        for name, size in encoding.sizes().items():
            self._sizes[name].append(size)
        self._source.append(source)
        self._prompts.append(_hash(item.asked()))
        self._texts.append(_hash(f"{piece} {item.whole()}" if piece else item.whole()))
        if (opposite := item.opposite()) is not None:
            self._opposites.append(_hash(opposite))

    def sizes(self, name: str, rows: np.ndarray) -> np.ndarray:
        """One of the numbers of these rows, [rows]."""
        return np.array(self._sizes[name], dtype=np.int64)[rows]

    def trained(self, rows: np.ndarray) -> np.ndarray:
        """Trained tokens of these rows, of a pair those of both answers, [rows]."""
        named = [name for name in ("trained", "chosen", "rejected", "completion") if name in self._sizes]
        return sum((self.sizes(name, rows) for name in named), start=np.zeros(len(rows), dtype=np.int64))

    @property
    def source(self) -> np.ndarray:
        """Which source each row is from, [all rows]."""
        return np.array(self._source, dtype=np.int64)

    @property
    def prompts(self) -> np.ndarray:
        """Hashes of what the rows ask, [all rows]."""
        return np.array(self._prompts, dtype=np.uint64)

    @property
    def texts(self) -> np.ndarray:
        """Hashes of whole rows, [all rows]."""
        return np.array(self._texts, dtype=np.uint64)

    @property
    def opposites(self) -> np.ndarray:
        """Hashes of what says the contrary of each, [all rows]; of pairs alone."""
        return np.array(self._opposites, dtype=np.uint64)

    def dataset(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Dataset:
        """These rows, read from the file as they are needed. ``columns``: those wanted, None for all."""
        dataset = Dataset.from_file(str(self._file)).select(rows)
        return dataset if columns is None else dataset.select_columns(list(columns))


def tokenize_sources(
    sources: Sequence[Source], way: Way[Made, Tokens], file: Path, *, held_out: bool = True
) -> TokenStore:
    """Read and encode all rows of ``sources`` into ``file``. ``held_out``: also the columns that only held-out rows need.

    Raises InputError for a row that stops the run: the first one, with how many there are.
    """
    store = TokenStore(sources, file)
    schema = way.schema if held_out else pa.schema([way.schema.field(name) for name in way.trained_columns])
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for number, (source, counts) in enumerate(zip(sources, store.sources, strict=True)):
                for batch in SourceRows(number, counts, way).batches(way.convert(source, counts), store):
                    writer.write_batch(_record_batch(batch, schema))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            text = f"{file.parent}: cannot hold the tokens ({error.strerror}); point TMPDIR at a folder with room"
            raise InputError(text, STORAGE) from None
        raise
    return store


class SourceRows(Generic[Made, Tokens]):
    """The rows of one source on their way into the store; bad, useless and long ones sorted out."""

    def __init__(self, number: int, counts: SourceCounts, way: Way[Made, Tokens]) -> None:
        self._number, self._counts, self._way = number, counts, way
        self._first_stop: tuple[str, Reason, str] | None = None
        self._stops = 0
        self._unreadable: InputError | None = None
        self._fields: set[str] = set()

    def batches(
        self, rows: Iterator[tuple[str, Made | Reason]], store: TokenStore
    ) -> Iterator[list[tuple[str, Tokens]]]:
        while batch := self._next(rows):
            good = []
            for origin, row in batch:
                if isinstance(row, BadRow | Unusable):
                    self._drop(origin, row)
                else:
                    good.append((origin, row))
                    self._fields |= row.fields()
            # after the first row that stops the run, the rest is only counted
            encoded = [] if self._first_stop else self._way.encode([row for _, row in good])
            kept = []
            for (origin, item), tokens in zip(good, encoded, strict=False):
                for piece, fitted in enumerate(self._fitted(origin, tokens, item.noticed)):
                    store.add(self._number, item, fitted, piece)
                    kept.append((origin, fitted))
            self._counts.kept += len(kept)
            if kept:
                yield kept
        left_out = [field for field in self._fields if not self._way.mentions(field.rpartition(".")[2])]
        self._counts.ignored += sorted(field if "." in field else f"turns' {field}" for field in left_out)
        if self._first_stop:
            raise self._error(*self._first_stop)

    def _next(self, rows: Iterator[tuple[str, Made | Reason]]) -> list[tuple[str, Made | Reason]]:
        batch: list[tuple[str, Made | Reason]] = []
        try:
            if self._unreadable is not None:
                raise self._unreadable
            batch.extend(islice(rows, _BATCH))  # what came before an error stays in it
        except InputError as error:
            self._unreadable = error
            # a row that stops the run comes first, in the file and in what is said
            if not batch and not self._first_stop:
                raise
        return batch

    def _drop(self, origin: str, reason: Reason) -> None:
        self._counts.dropped.add(reason.kind, origin)
        if fix := self._fix(reason):
            self._first_stop = self._first_stop or (origin, reason, fix)
            self._stops += 1

    def _fix(self, reason: Reason) -> str | None:
        if reason.kind in _ALWAYS:
            return _ALWAYS[reason.kind]
        if isinstance(reason, BadRow) and self._way.bad_rows_stop:
            return BAD_ROW_FIX
        return self._way.stops.get(reason.kind)

    def _fitted(self, origin: str, tokens: Tokens | Reason, noticed: Mapping[str, int]) -> list[Tokens]:
        """The row as it is trained on, cut or in pieces if need be; nothing where it is dropped."""
        if isinstance(tokens, BadRow | Unusable):
            self._drop(origin, tokens)
            return []
        try:
            fitted, happened = self._way.fit(tokens)
        except (BadRow, Unusable) as reason:
            self._drop(origin, reason)
            return []
        for token in dict.fromkeys(tokens.control_tokens_as_text):
            self._counts.control_tokens_as_text.add(token, origin)
        for kind, count in (*noticed.items(), *happened.items()):
            if count:
                self._counts.happened.add(kind, origin, count)
        return list(fitted) if isinstance(fitted, Sequence) else [fitted]

    def _error(self, origin: str, reason: Reason, fix: str) -> InputError:
        what = "bad" if isinstance(reason, BadRow) else "long"
        rows = "row" if self._stops == 1 else "rows"
        return InputError(f"{origin}: {reason}; {self._stops:,} {what} {rows} of {self._counts.read:,}. {fix}")


def _record_batch(rows: list[tuple[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [row.columns() | {"origin": origin} for origin, row in rows]
    return pa.RecordBatch.from_pydict({name: [row[name] for row in columns] for name in schema.names}, schema=schema)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
