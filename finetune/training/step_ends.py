"""Counts between two logged steps, and what happens when a step ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.signals import StopRequest


@dataclass
class Counts:
    """Of the steps since the last logged one, over all processes: real tokens, tokens with padding, seconds from a
    step's data to its end, steps left out."""

    tokens: int = 0
    slots: int = 0
    seconds: float = 0.0
    began: float = 0.0
    skipped: int = 0
    rows: list[int] = field(default_factory=list)
    """of the step at work in this process, as indices into the training rows"""


class StepEnds(TrainerCallback):
    """Ends a step's time, acts on a stop request and logs what a checkpoint would otherwise cut in two."""

    def __init__(self, counts: Counts, processes: Processes, stop: StopRequest) -> None:
        self.counts, self.processes, self.stop = counts, processes, stop

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.counts.seconds += time.perf_counter() - self.counts.began
        # a signal reaches one process before the other; none of them may take a step that another does not
        if self.processes.any(self.stop.now):
            self.stop.agreed = True
            control.should_save = control.should_training_stop = True
        # a resumed run has lost the sum of the losses since the last line, so that line ends where the checkpoint does
        control.should_log |= control.should_save
