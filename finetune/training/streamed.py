"""Training on a stream: its micro-batches or steps, and where a checkpoint goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.report.account import Account
from hybrid_ft.finetune.data.streaming.account import account_of
from hybrid_ft.finetune.data.streaming.source_stream import State
from hybrid_ft.finetune.data.streaming.stream_rows import AnyRow
from hybrid_ft.finetune.data.streaming.windows import RowStream
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.training.trainer import RunTrainer

STREAM = "stream.json"
"""In a checkpoint: the window that its next step begins in, the packs of it that are trained, and what was counted."""

Part = tuple[list[dict[str, Any]], State]
"""Rows for the collator, with the stream's state after the whole step."""


class StreamParts(IterableDataset[Any]):
    """What a process takes of a stream, part by part.

    ``parts`` makes them of the stream's packs, each with the state after it. From a loader's process an error comes in
    the place of a part: a traceback would not help a user.
    """

    def __init__(
        self,
        open_stream: Callable[[], RowStream],
        parts: Callable[[Iterator[tuple[list[Any], State]]], Iterator[Part]],
    ) -> None:
        self._open, self._parts = open_stream, parts
        self.start: State | None = None

    def __iter__(self) -> Iterator[tuple[list[dict[str, Any]], Any]]:
        if torch.utils.data.get_worker_info() is None:
            yield from self._parts(packs_from(self._open(), self.start))
            return
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a fork does not have the threads, and would wait for them
        try:
            yield from self._parts(packs_from(self._open(), self.start))
        except InputError as error:
            yield [], error


def packs_from(stream: RowStream, start: State | None) -> Iterator[tuple[list[AnyRow], State]]:
    """The packs of the stream from ``start`` on, each with the state after it."""
    if start is not None:
        stream.load(start["window"])
    done = start["packs"] if start else 0
    for window in stream.windows():
        for number in range(done, len(window.packs)):
            rows = [window.rows[row] for row in window.packs[number]]
            yield rows, {"window": window.start, "packs": number + 1, "counted": window.end}
        done = 0


class StreamedTrainer(RunTrainer):
    """To be named before a stage's trainer. ``train_dataset`` is a sample of the stream, which ``steps`` gives.
    Held-out rows are as ever."""

    def __init__(self, *args: Any, steps: StreamParts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = steps
        self.state_of_stream: State | None = None
        self.add_callback(_ShareOfSteps())

    def get_train_dataloader(self) -> DataLoader:
        """From the checkpoint's place on. It draws from no random state that the training has."""
        collate: Any = self._collate
        return DataLoader(
            self.steps,
            batch_size=None,
            collate_fn=collate,
            num_workers=min(self.args.dataloader_num_workers, 1),  # two would read the stream twice
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),
        )

    def _collate(self, step: tuple[list[dict[str, Any]], Any]) -> dict[str, Any]:
        examples, state = step
        return ({} if isinstance(state, InputError) else self.data_collator(examples)) | {"stream": state}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        return super().get_batch_samples(self._without_states(epoch_iterator), num_batches, device)

    def _without_states(self, batches: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            state = batch.pop("stream")
            if isinstance(state, InputError):
                raise state
            self.state_of_stream = state
            yield batch

    def save_more(self, staged: Path) -> None:
        write_text(staged / STREAM, json.dumps(self.state_of_stream))

    def load_weights(self, folder: Path) -> None:
        super().load_weights(folder)
        if self.state_of_stream is not None:  # the best weights, at the end: the stream stays where it came to
            return
        try:
            self.state_of_stream = self.steps.start = json.loads((folder / STREAM).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(f"{folder}: {STREAM} is missing; the run cannot go on from here") from None

    def account(self, before: Account) -> Account | None:
        """Of what the stream held up to the last step's window."""
        return account_of(self.state_of_stream["counted"], before) if self.state_of_stream else None


class _ShareOfSteps(TrainerCallback):
    """A stream's epoch is the whole run; transformers begins to count it again where a run goes on."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        state.epoch = state.global_step / state.max_steps
