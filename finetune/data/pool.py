"""All usable rows of some sources in tokens, kept on disk; in memory a few numbers for each."""

from __future__ import annotations

import errno
import json
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.hashes import prompt_hash, text_hash
from hybrid_ft.finetune.data.messages.conversation import NOTHING_TO_LEARN, PASSED_ON, Conversation
from hybrid_ft.finetune.data.reading import SourceReport, conversations
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode import Encoded, encode
from hybrid_ft.finetune.data.tokens.template import RUNAWAY, ChatTemplate

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Data, Source

_BATCH = 512  # rows encoded at a time

_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("input_ids", _TOKENS), ("labels", _TOKENS), ("origin", pa.string())])
_HELD_OUT_SCHEMA = _SCHEMA.append(pa.field("prompt_ids", _TOKENS)).append(pa.field("answer", pa.string()))

ANOTHER_TEMPLATE = "Set model.chat_template to another one"
_LONG, _LONG_PROMPT = "longer than data.max_length", "prompt alone longer than data.max_length"


class Pool:
    """Rows of some sources. Per row [rows]: ``lengths`` and ``trained`` tokens, ``source``, ``prompts`` and ``texts`` hashes."""

    def __init__(self, reports: list[SourceReport], file: Path) -> None:
        self.reports = reports
        self._file = file
        self._lengths, self._trained, self._source = array("q"), array("q"), array("q")
        self._prompts, self._texts = array("Q"), array("Q")

    def note(self, source: int, conversation: Conversation, row: Encoded) -> None:
        self._lengths.append(len(row.ids))
        self._trained.append(sum(last - first + 1 for first, last in row.turns))
        self._source.append(source)
        self._prompts.append(prompt_hash(conversation))
        whole = [conversation.messages, conversation.tools, sorted(conversation.untrained)]
        self._texts.append(text_hash(json.dumps(whole, sort_keys=True)))

    @property
    def lengths(self) -> np.ndarray:
        return np.array(self._lengths, dtype=np.int64)

    @property
    def trained(self) -> np.ndarray:
        return np.array(self._trained, dtype=np.int64)

    @property
    def source(self) -> np.ndarray:
        return np.array(self._source, dtype=np.int64)

    @property
    def prompts(self) -> np.ndarray:
        return np.array(self._prompts, dtype=np.uint64)

    @property
    def texts(self) -> np.ndarray:
        return np.array(self._texts, dtype=np.uint64)

    def rows(self, indices: np.ndarray, *, held_out: bool) -> Dataset:
        """The rows of these indices as a dataset, read from the pool's file as they are needed."""
        dataset = Dataset.from_file(str(self._file)).select(indices)
        return dataset if held_out else dataset.select_columns(_SCHEMA.names)


def read_pool(
    sources: list[Source], data: Data, template: ChatTemplate, control: ControlTokens, file: Path, *, held_out: bool
) -> Pool:
    """Read and encode all rows of ``sources`` into ``file``.

    ``held_out``: also keep what it takes to ask for a row's last answer and to compare it. Raises InputError for a bad
    row, or one that is too long, unless the recipe has such rows dropped.
    """
    pool = Pool([SourceReport(source.path) for source in sources], file)
    schema = _HELD_OUT_SCHEMA if held_out else _SCHEMA
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for number, (source, report) in enumerate(zip(sources, pool.reports, strict=True)):
                rows = _SourceRows(number, report, data, template, control)
                for batch in rows.batches(conversations(source, report), pool):
                    writer.write_batch(_record_batch(batch, schema))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            text = f"{file.parent}: cannot hold the tokens ({error.strerror}); point TMPDIR at a folder with room"
            raise InputError(text, STORAGE) from None
        raise
    return pool


class _SourceRows:
    """The rows of one source on their way into the pool, bad and long ones sorted out."""

    def __init__(
        self, number: int, report: SourceReport, data: Data, template: ChatTemplate, control: ControlTokens
    ) -> None:
        self._number, self._report, self._data = number, report, data
        self._template, self._control = template, control
        self._refused: tuple[str, BadRow] | None = None
        self._refused_count = 0
        self._passed_on: set[str] = set()
        self._unreadable: InputError | None = None

    def batches(
        self, rows: Iterator[tuple[str, Conversation | BadRow]], pool: Pool
    ) -> Iterator[list[tuple[str, Encoded]]]:
        while batch := self._next(rows):
            good = [(origin, row) for origin, row in batch if isinstance(row, Conversation)]
            # after the first row that stops the run, the rest is only counted
            encoded = [] if self._refused else encode([row for _, row in good], self._template, self._control)
            kept = []
            for _, conversation in good:
                self._passed_on.update(key for turn in conversation.messages for key in PASSED_ON if key in turn)
            for (origin, conversation), row in zip(good, encoded, strict=False):
                if (fitting := self._fitting(origin, row)) is not None:
                    pool.note(self._number, conversation, fitting)
                    if conversation.untrained:
                        self._report.untrained.add(origin, len(conversation.untrained))
                    kept.append((origin, fitting))
            self._report.kept += len(kept)
            if kept:
                yield kept
        self._report.ignored += sorted(f"turns' {key}" for key in self._passed_on if not self._template.mentions(key))
        if self._refused:
            raise self._error(*self._refused)

    def _next(self, rows: Iterator[tuple[str, Conversation | BadRow]]) -> list[tuple[str, Conversation | BadRow]]:
        batch: list[tuple[str, Conversation | BadRow]] = []
        try:
            if self._unreadable is not None:
                raise self._unreadable
            batch.extend(islice(rows, _BATCH))  # what came before an error stays in it
        except InputError as error:
            self._unreadable = error
            # a row that stops the run comes first, in the file and in what is said
            if not batch and not self._refused:
                raise
        for origin, row in batch:
            if isinstance(row, BadRow):
                self._bad(origin, row)
        return batch

    def _bad(self, origin: str, bad: BadRow) -> None:
        self._report.dropped.add(bad.kind, origin)
        if self._data.on_bad_row == "error" or bad.kind == RUNAWAY:
            self._refuse(origin, bad)

    def _refuse(self, origin: str, bad: BadRow) -> None:
        self._refused = self._refused or (origin, bad)
        self._refused_count += 1

    def _fitting(self, origin: str, row: Encoded | BadRow) -> Encoded | None:
        """The row as it is trained on, cut if need be; None where it is dropped."""
        if isinstance(row, Encoded) and not row.turns:
            text = "the chat template marks none of the row's turns that are trained as the assistant's"
            row = BadRow(NOTHING_TO_LEARN, text)
        if isinstance(row, BadRow):
            self._bad(origin, row)
            return None
        most = self._data.max_length
        if len(row.ids) > most:
            alone = row.turns[0][0] >= most
            if self._data.on_long_row == "error":
                what = "the prompt alone has" if alone else "has"
                got = row.turns[0][0] if alone else len(row.ids)
                self._refuse(origin, BadRow(_LONG, f"{what} {got:,} tokens; data.max_length is {most:,}"))
            if alone or self._data.on_long_row != "cut":
                self._report.dropped.add(_LONG_PROMPT if alone else _LONG, origin)
                return None
            row = _cut(row, most)
            self._report.cut.add(origin)
        for token in row.neutralised:
            self._report.neutralised.add(token, origin)
        if row.unshown_thoughts:
            self._report.unshown_thoughts.add(origin)
        return row

    def _error(self, origin: str, bad: BadRow) -> InputError:
        if bad.kind == _LONG:
            fix = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
        elif bad.kind == RUNAWAY:
            fix = ANOTHER_TEMPLATE
        else:
            fix = "Fix it, or set data.on_bad_row: skip"
        rows = "row" if self._refused_count == 1 else "rows"
        what = "long" if bad.kind == _LONG else "bad"
        return InputError(f"{origin}: {bad}; {self._refused_count:,} {what} {rows} of {self._report.read:,}. {fix}")


def _cut(row: Encoded, most: int) -> Encoded:
    turns = [(first, min(last, most - 1)) for first, last in row.turns if first < most]
    row.ids, row.turns = row.ids[:most], turns
    return row


def _record_batch(rows: list[tuple[str, Encoded]], schema: pa.Schema) -> pa.RecordBatch:
    columns: dict[str, Any] = {
        "input_ids": [row.ids for _, row in rows],
        "labels": [row.labels() for _, row in rows],
        "origin": [origin for origin, _ in rows],
        "prompt_ids": [row.prompt_ids for _, row in rows],
        "answer": [row.answer for _, row in rows],
    }
    return pa.RecordBatch.from_pydict({name: columns[name] for name in schema.names}, schema=schema)
