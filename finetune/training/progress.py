"""What is seen of a run while it trains: a live line on a terminal, plain lines elsewhere, and ``metrics.jsonl``."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_KEPT = (
    "loss",
    "grad_norm",
    "learning_rate",
    "tokens",
    "tokens_per_s",
    "padding",
    "skipped",
    "seconds",
    "memory",
    "eval_loss",
    "eval_tokens",
)


SPACING = 10.0
"""seconds between two lines where there is no terminal: a log of thousands of steps stays readable"""


class ShowProgress(TrainerCallback):
    """One JSON line per logged step or held-out loss: ``step``, ``epoch`` and what was measured.

    ``loss`` is per trained token over the logged steps, ``tokens`` real tokens since the run began, ``seconds`` spent
    in these steps, ``memory`` the peak in bytes.
    """

    def __init__(self, console: Console, metrics: Path) -> None:
        self.console = console
        self.metrics = metrics
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
        kept = {name: logs[name] for name in _KEPT if name in logs}
        if not kept or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, "epoch": round(state.epoch or 0.0, 4), **kept}
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.shown |= kept
        if "loss" in kept:
            self._show(state)
        else:
            say(self.console, f"step {state.global_step}/{state.max_steps}  held-out loss {kept['eval_loss']:.4f}")

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

    def _show(self, state: TrainerState) -> None:
        shown = self.shown
        numbers = (
            f"loss {shown['loss']:.4f}  lr {shown['learning_rate']:.2e}  {shown['tokens_per_s']:,.0f} tokens/s  "
            f"padding {shown['padding']:.0%}"
        )
        self._put(state, [f"{numbers}  {self._left(state)}"])

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


def say(console: Console, text: str) -> None:
    """Print text as it is: rich would take ``train[0]`` for markup and wrap paths."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``2 h 05 min``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
