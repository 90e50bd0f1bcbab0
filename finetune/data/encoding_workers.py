"""Encodes batches of rows in as many processes as there are cores, in order."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic

import pyarrow as pa

from hybrid_ft.errors import ENVIRONMENT, InputError
from hybrid_ft.finetune.data.rare_collections import NEW_OBJECTS
from hybrid_ft.finetune.data.source_rows import Batch, EncodedBatch, Rows, encoded_batch
from hybrid_ft.finetune.data.way import Made, Tokens, Way

ALONE = 12
"""Batches that one process encodes before others are started: most data is through by then."""
_MOST = 16  # processes; one that reads the rows keeps no more of them at work
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG

_DIED = "a process that encoded rows was killed, most likely for memory; free some, or start the command again"

_work: tuple[Way[Any, Any], pa.Schema] | None = None
"""What a forked process encodes by: it has it from its parent, since not all of it can be sent."""


class EncodingWorkers(Generic[Made, Tokens]):
    """What encodes rows by one way into one schema. ``processes``: how many; None for as many as there are cores."""

    def __init__(self, way: Way[Made, Tokens], schema: pa.Schema, processes: int | None = None) -> None:
        self._way, self._schema = way, schema
        self._processes = cores() if processes is None else processes
        self._alone = ALONE
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> EncodingWorkers[Made, Tokens]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def in_order(
        self, batches: Iterator[Batch], good: Callable[[Batch], Rows | None]
    ) -> Iterator[tuple[Batch, EncodedBatch | None]]:
        """Each batch with its rows encoded, None where ``good`` gives none of them to encode.

        ``good`` may be asked of some batches more before an earlier one is given back.
        """
        ahead: deque[tuple[Batch, Future[EncodedBatch] | None]] = deque()
        for batch in batches:
            rows = good(batch)
            if self._alone > 0 or self._processes < 2:
                self._alone -= 1
                yield batch, None if rows is None else encoded_batch(self._way, self._schema, rows)
                continue
            ahead.append((batch, None if rows is None else self._sent(rows)))
            if len(ahead) > 2 * self._processes:
                yield _received(*ahead.popleft())
        while ahead:
            yield _received(*ahead.popleft())

    def _sent(self, rows: Rows) -> Future[EncodedBatch]:
        global _work
        if self._pool is None:
            _work = self._way, self._schema
            context = multiprocessing.get_context("fork")
            self._pool = ProcessPoolExecutor(self._processes, context, _begin, (os.getpid(),))
        with warnings.catch_warnings():
            # of threads at a fork, from Python 3.12 on: a worker uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            return self._pool.submit(_encoded, rows)


def cores() -> int:
    """Processes to encode in: of a launcher's several here each has its part. 1 where no process
    can be forked safely."""
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return 1
    if multiprocessing.current_process().daemon:
        return 1
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return min(len(os.sched_getaffinity(0)) // max(int(beside) if beside.isdecimal() else 1, 1), _MOST)


def _received(batch: Batch, future: Future[EncodedBatch] | None) -> tuple[Batch, EncodedBatch | None]:
    try:
        return batch, None if future is None else future.result()
    except BrokenProcessPool:
        raise InputError(_DIED, ENVIRONMENT) from None


def _encoded(rows: Rows) -> EncodedBatch:
    assert _work is not None
    return encoded_batch(*_work, rows)


def _begin(parent: int) -> None:
    """Make a fork fit to work: it ends with its parent, leaves signals to it, and starts no threads."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    os.setpgrp()  # Ctrl-C, and a scheduler's signals to the group, are the parent's to answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are the parent's, which a fork does not have
    gc.set_threshold(NEW_OBJECTS)
    gc.freeze()  # what the parent no longer needs is its own to take away, temporary folders above all
