"""A run's progress: a live line on a terminal, plain lines elsewhere, and ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hybrid_ft.finetune.runs.console import duration, say

KEPT = (
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens",
    "tokens_per_s",
    "padding",
    "skipped",
    "seconds",
    "memory",
)
"""Of a step, whatever the stage."""

SUITE = "suite/"
"""before the name of a task's measure"""

SPACING = 10.0
"""seconds between two lines where there is no terminal: a log of thousands of steps stays readable"""


class ShowProgress(TrainerCallback):
    """One JSON line per logged step or held-out measure: ``step``, ``epoch`` and what was measured.

    ``loss`` is per trained token or per pair over the logged steps, ``tokens`` real tokens since the run began,
    ``seconds`` spent in these steps, ``memory`` the peak in bytes. Held-out values have ``eval_`` before their name.

    kept       names of what is measured beside ``KEPT``, of steps and of held-out rows alike
    parts      what is shown of the values known so far and the time left, one line of a terminal each
    held_out   what is shown of held-out values, whose names have ``eval_`` before them
    watch      takes a step's values and returns what there is to warn of
    """

    def __init__(
        self,
        console: Console,
        metrics: Path,
        *,
        kept: Sequence[str],
        parts: Callable[[dict[str, float], str], list[str]],
        held_out: Callable[[dict[str, float]], str],
        watch: Callable[[dict[str, float]], list[str]] = lambda values: [],
    ) -> None:
        self.console, self.metrics = console, metrics
        self.kept = {*KEPT, *kept, *(f"eval_{name}" for name in ("loss", *kept))}
        self.parts, self.held_out, self.watch = parts, held_out, watch
        self.shown: dict[str, float] = {}
        self.unsaid = ""
        self.said_at = -math.inf
        self.live = Progress(
            TextColumn("step {task.completed}/{task.total}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[line]}"),
            console=console,
            transient=True,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.first_step, self.began = state.global_step, time.perf_counter()
        if self.console.is_terminal:
            self.task = self.live.add_task("", total=state.max_steps, completed=state.global_step, line="")
            self.live.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **kwargs: Any
    ) -> None:
        kept = {name: value for name, value in logs.items() if name in self.kept or name.startswith(SUITE)}
        if not kept or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **kept}
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.shown |= kept
        if scores := [
            f"{name.removeprefix(SUITE)} {value:.4g}" for name, value in kept.items() if name.startswith(SUITE)
        ]:
            say(self.console, f"step {state.global_step}/{state.max_steps}  {', '.join(scores)}")
            return
        if "loss" not in kept:
            say(self.console, f"step {state.global_step}/{state.max_steps}  held-out {self.held_out(kept)}")
            return
        self._put(state, self.parts(self.shown, self._left(state)))
        for text in self.watch(kept):
            say(self.console, text)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()
        if self.unsaid:
            say(self.console, self.unsaid)

    def close(self) -> None:
        """Take the live line away; also after an error."""
        if self.live.live.is_started:  # not started, rich would print an empty line
            self.live.stop()

    def _left(self, state: TrainerState) -> str:
        done = state.global_step - self.first_step
        left = (time.perf_counter() - self.began) / max(done, 1) * (state.max_steps - state.global_step)
        return f"{duration(left)} left"

    def _put(self, state: TrainerState, parts: list[str]) -> None:
        """The state of the run: on a terminal in place of the last one, elsewhere as a line now and then."""
        self.unsaid = f"step {state.global_step}/{state.max_steps}  {'  '.join(parts)}"
        if self.console.is_terminal:
            self.live.update(self.task, completed=state.global_step, line="\n".join(parts))
        elif time.perf_counter() - self.said_at >= SPACING:
            say(self.console, self.unsaid)
            self.unsaid, self.said_at = "", time.perf_counter()
