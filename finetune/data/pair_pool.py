"""All usable pairs of some sources in tokens, kept on disk; in memory a few numbers for each."""

from __future__ import annotations

import errno
import json
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.hashes import prompt_hash, text_hash
from hybrid_ft.finetune.data.messages.preference import Preference, Unusable
from hybrid_ft.finetune.data.pair_reading import PairSourceReport, preferences
from hybrid_ft.finetune.data.pool import ANOTHER_TEMPLATE
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.encode_pairs import TokenPair, encode_pairs
from hybrid_ft.finetune.data.tokens.fit_pairs import (
    NOTHING_LEFT,
    OVER_BUDGET,
    PAIR_TOO_LONG,
    PROMPT_TOO_LONG,
    Limits,
    fit,
)
from hybrid_ft.finetune.data.tokens.template import RUNAWAY, ChatTemplate

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Source

_BATCH = 256  # pairs encoded at a time

_TOKENS = pa.list_(pa.int32())
_SCHEMA = pa.schema(
    [("prompt_ids", _TOKENS), ("chosen_ids", _TOKENS), ("rejected_ids", _TOKENS), ("origin", pa.string())]
)

_Pairs = Iterator[tuple[str, Preference | BadRow | Unusable]]


class PairPool:
    """Pairs of some sources. Per pair [pairs]: tokens of its three parts, its source, hashes of its prompt and of all."""

    def __init__(self, reports: list[PairSourceReport], file: Path) -> None:
        self.reports = reports
        self._file = file
        self._prompt, self._chosen, self._rejected, self._source = (array("q") for _ in range(4))
        self._prompts, self._texts = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._source)

    def note(self, source: int, preference: Preference, pair: TokenPair) -> None:
        self._prompt.append(len(pair.prompt))
        self._chosen.append(len(pair.chosen))
        self._rejected.append(len(pair.rejected))
        self._source.append(source)
        self._prompts.append(prompt_hash(next(preference.sides())))
        whole = [preference.prompt, preference.chosen, preference.rejected, preference.tools]
        self._texts.append(text_hash(json.dumps(whole, sort_keys=True)))

    def lengths(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens [rows] of prompts, chosen and rejected answers."""
        prompt, chosen, rejected = (
            np.array(part, dtype=np.int64)[rows] for part in (self._prompt, self._chosen, self._rejected)
        )
        return prompt, chosen, rejected

    @property
    def source(self) -> np.ndarray:
        return np.array(self._source, dtype=np.int64)

    @property
    def prompts(self) -> np.ndarray:
        return np.array(self._prompts, dtype=np.uint64)

    @property
    def texts(self) -> np.ndarray:
        return np.array(self._texts, dtype=np.uint64)

    def rows(self, indices: np.ndarray) -> Dataset:
        """The pairs of these indices as a dataset, read from the pool's file as they are needed."""
        return Dataset.from_file(str(self._file)).select(indices)


def read_pair_pool(
    sources: list[Source], on_bad_row: str, limits: Limits, template: ChatTemplate, control: ControlTokens, file: Path
) -> PairPool:
    """Read and encode all pairs of ``sources`` into ``file``.

    Raises InputError for a bad row, or a pair that is too long, unless the recipe has such rows dropped.
    """
    pool = PairPool([PairSourceReport(source.path) for source in sources], file)
    try:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            for number, (source, report) in enumerate(zip(sources, pool.reports, strict=True)):
                pairs = _SourcePairs(number, report, on_bad_row, limits, template, control)
                for batch in pairs.batches(preferences(source, report), pool):
                    writer.write_batch(_record_batch(batch))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            text = f"{file.parent}: cannot hold the tokens ({error.strerror}); point TMPDIR at a folder with room"
            raise InputError(text, STORAGE) from None
        raise
    return pool


class _SourcePairs:
    """The pairs of one source on their way into the pool, bad, useless and long ones sorted out."""

    def __init__(
        self,
        number: int,
        report: PairSourceReport,
        on_bad_row: str,
        limits: Limits,
        template: ChatTemplate,
        control: ControlTokens,
    ) -> None:
        self._number, self._report, self._limits = number, report, limits
        self._template, self._control = template, control
        self._stops: dict[str, str] = {}
        if limits.on_long_prompt == "error":
            fix = "Raise data.max_length, or set dpo.on_long_prompt: drop (or cut_start)"
            self._stops |= {PROMPT_TOO_LONG: fix, NOTHING_LEFT: fix}
        if limits.on_long_row == "error":
            self._stops[PAIR_TOO_LONG] = "Raise data.max_length, or set data.on_long_row: drop (or cut)"
            self._stops[OVER_BUDGET] = "Raise train.batch_tokens, or set data.on_long_row: drop"
        self._bad_row_stops = on_bad_row == "error"
        self._first_stop: tuple[str, str, str, str] | None = None
        self._stop_count = 0

    def batches(self, rows: _Pairs, pool: PairPool) -> Iterator[list[tuple[str, TokenPair]]]:
        while batch := self._next(rows):
            good = [(origin, pair) for origin, pair in batch if isinstance(pair, Preference)]
            # after the first pair that stops the run, the rest is only counted
            stopped = self._first_stop is not None
            encoded = [] if stopped else encode_pairs([pair for _, pair in good], self._template, self._control)
            kept = []
            for (origin, preference), pair in zip(good, encoded, strict=False):
                if (fitting := self._fitting(origin, pair)) is not None:
                    pool.note(self._number, preference, fitting)
                    kept.append((origin, fitting))
            self._report.kept += len(kept)
            if kept:
                yield kept
        if self._first_stop:
            origin, text, what, fix = self._first_stop
            rows_ = "row" if self._stop_count == 1 else "rows"
            read = self._report.read
            raise InputError(f"{origin}: {text}; {self._stop_count:,} {what} {rows_} of {read:,}. {fix}")

    def _next(self, rows: _Pairs) -> list[tuple[str, Preference | BadRow | Unusable]]:
        try:
            batch = list(islice(rows, _BATCH))
        except InputError:
            if self._first_stop:
                return []  # the row that stopped the run comes first
            raise
        for origin, row in batch:
            if not isinstance(row, Preference):
                self._drop(origin, row)
        return batch

    def _drop(self, origin: str, reason: BadRow | Unusable) -> None:
        self._report.dropped.add(reason.kind, origin)
        if isinstance(reason, BadRow):
            what, fix = "bad", "Fix it, or set data.on_bad_row: skip" if self._bad_row_stops else ""
            fix = ANOTHER_TEMPLATE if reason.kind == RUNAWAY else fix
        else:
            what, fix = "long", self._stops.get(reason.kind, "")
        if fix:
            self._first_stop = self._first_stop or (origin, str(reason), what, fix)
            self._stop_count += 1

    def _fitting(self, origin: str, pair: TokenPair | BadRow | Unusable) -> TokenPair | None:
        """The pair as it is trained on, cut if need be; None where it is dropped."""
        if not isinstance(pair, TokenPair):
            self._drop(origin, pair)
            return None
        try:
            fitted = fit(pair, self._limits)
        except Unusable as reason:
            self._drop(origin, reason)
            return None
        report = self._report
        for token in sorted(set(pair.neutralised)):
            report.neutralised.add(token, origin)
        for happened, tally in (
            (fitted.cut_prompt, report.cut_prompts),
            (fitted.cut_answers, report.cut),
            (pair.unshown_thoughts, report.unshown_thoughts),
            (pair.split_line_ends, report.split_line_ends),
        ):
            if happened:
                tally.add(origin)
        return fitted.pair


def _record_batch(rows: list[tuple[str, TokenPair]]) -> pa.RecordBatch:
    columns = {
        "prompt_ids": [pair.prompt for _, pair in rows],
        "chosen_ids": [pair.chosen for _, pair in rows],
        "rejected_ids": [pair.rejected for _, pair in rows],
        "origin": [origin for origin, _ in rows],
    }
    return pa.RecordBatch.from_pydict(columns, schema=_SCHEMA)
